"""What few seeds, runs and items can say: intervals, tests, associations. No I/O."""
