"""Where numbers are read from: weights as exact updates, hidden states, gradient statistics."""
