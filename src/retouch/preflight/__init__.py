"""Checks and estimates before an edit; no weights are editable."""
