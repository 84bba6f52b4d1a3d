"""The report: one self-contained page about a store; ``page`` writes it."""
