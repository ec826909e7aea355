"""Studies: several runs trained, consolidated, scored, analysed and reported, resumable at every step."""
