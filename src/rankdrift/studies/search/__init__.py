"""The search of a study: trials asked for in rounds, carried out as tasks, and what they found."""
