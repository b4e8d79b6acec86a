"""Compare methods on the same examples, and tune their settings."""
