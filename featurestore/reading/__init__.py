"""Reads rows of features from mapped files, in random order or sequentially."""
