"""Benchmarks: commands beside the tests, each prints the table that the docs quote."""
