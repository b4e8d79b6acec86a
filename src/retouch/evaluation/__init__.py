"""Measure any model, edited or not: responses, drift from the base, robustness to attacks."""
