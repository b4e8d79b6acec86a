"""The command line: commands that parse options, call one library function and print the result."""
