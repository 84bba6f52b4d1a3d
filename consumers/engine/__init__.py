"""From views to committed chunks: batches, compute threads, staging and commits."""
