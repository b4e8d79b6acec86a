"""What an edit hands over: the gate before it, then the model card, the report and the export."""
