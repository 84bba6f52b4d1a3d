"""Exports of a store's features in the formats of other programs; one module per format."""
