"""Concepts are data: rows to contrast, read from built-in packs or from a user's own file."""
