"""`pocket`, the built-in model: its knowledge, its grammar, its training and its concepts' data."""
