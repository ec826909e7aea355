"""Stored checkpoints and exports are what was written, and can be what they claim to be."""
