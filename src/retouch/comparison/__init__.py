"""Retouch beside what a user would do instead: the search for settings, and the comparison."""
