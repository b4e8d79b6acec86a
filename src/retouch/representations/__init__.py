"""Representations: reading hidden states, and finding where a concept is decided."""
