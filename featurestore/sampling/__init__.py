"""Which items make which batch: shuffled, shared among processes, resumable."""
