"""Commands: what the ``rankdrift`` console script and the scripts in ``launch/`` call. One file a command."""
