"""Whether an experiment works at all: tried on its own model and data in a few steps, before hours of it."""
