"""Checkpoints become folders that plain transformers and peft load."""
