"""`pocket`: the built-in model organism, its world, its grammar and its training script."""
