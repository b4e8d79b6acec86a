"""Scores any model, edited or not: what it responses, how far it drifted, how sure that is."""
