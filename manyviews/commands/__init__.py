"""The commands of the command line: parse, call, and say what came out."""
