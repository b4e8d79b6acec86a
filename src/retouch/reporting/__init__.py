"""Outputs of an edit: safety gate, model card, report and export."""
