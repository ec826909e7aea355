"""What this machine has and can do, checked before hours are spent on it."""
