"""Rows of features, read from mapped files at random or in order."""
