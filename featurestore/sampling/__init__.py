"""Groups items into batches: shuffled, shared among processes, resumable."""
