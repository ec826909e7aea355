"""Pure functions of arrays. No I/O; none of its subjects imports another."""
