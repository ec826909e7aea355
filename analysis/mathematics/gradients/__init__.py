"""Gradients as samples of rows: inner products, noise, conflict. No I/O."""
