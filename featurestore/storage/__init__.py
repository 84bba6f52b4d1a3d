"""Stores on disk: arrays, codecs, the ledger, and how to create, read and extend a store."""
