"""Scores any model, edited or not: what it replies, how far it drifted, how sure that is."""
