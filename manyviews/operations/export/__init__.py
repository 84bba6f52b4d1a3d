"""Exports: a store's features in the formats that other programs read, each by its own writer."""
