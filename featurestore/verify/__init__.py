"""Findings about a store, made without trusting the code that wrote it."""
