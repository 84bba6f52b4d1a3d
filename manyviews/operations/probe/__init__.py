"""Linear probes of a store's features."""
