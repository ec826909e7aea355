"""Scores of a checkpoint: task metrics, and retention on general text."""
