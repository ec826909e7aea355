"""The machines of a run: who they are, whether they can be reached, what they have."""
