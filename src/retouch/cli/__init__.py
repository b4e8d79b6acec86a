"""The command line: thin commands that print; what is heavy is imported inside them."""
