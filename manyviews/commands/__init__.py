"""The commands of the command line: parse the options, call the operation, and print its result."""
