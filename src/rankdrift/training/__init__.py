"""Training on the DeepSpeed engine: one loop for every method."""
