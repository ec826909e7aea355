"""Analyses of a study: its tables and checkpoints become one table more. One file an analysis."""
