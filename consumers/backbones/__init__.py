"""The frozen models: the paper's four, and those that a configuration declares."""
