"""Spectra of matrices and of their updates: values, subspaces, intruders, null values. No I/O."""
