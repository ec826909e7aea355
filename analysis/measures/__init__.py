"""Analyses of a checkpoint or a run: it becomes rows of one or more tidy tables. One file an analysis."""
