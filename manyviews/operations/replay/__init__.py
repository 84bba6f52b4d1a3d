"""Any view of any sample, replayed."""
