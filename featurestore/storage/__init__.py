"""What lies on disk: arrays, codecs, the ledger, and a store that is created, read and extended."""
