"""Concepts are data: examples from built-in packs, other packages or a user's files."""
