"""The report: a self-contained HTML page about a store, written by ``page``."""
