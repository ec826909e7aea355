"""Offline analysis of checkpoints: spectra, gradient statistics, layer drift, figures and the report.

The folder stands at the top of the repository and is imported as ``rankdrift.analysis`` (a symbolic
link in ``src/rankdrift``), so that its relative place says what it is: a package of its own, which
knows nothing about training.
"""

if __name__ == "analysis":
    raise ImportError("this package is imported as 'rankdrift.analysis', not as top-level 'analysis'")
