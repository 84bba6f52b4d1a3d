"""Checks a store independently of the code that wrote it."""
