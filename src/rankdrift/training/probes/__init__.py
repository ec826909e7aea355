"""Measurements taken during training, before the optimizer step. One file a probe."""
