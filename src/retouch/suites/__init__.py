"""Public evaluation sets as suites: data files that say where the rows are and how they score."""
