"""Methods: which parameters train, how they start, and how the result is exported. One file a method."""
