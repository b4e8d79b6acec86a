"""Benchmarks: commands that print the tables which the documentation cites."""
