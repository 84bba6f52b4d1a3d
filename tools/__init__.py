"""Programs for developers: tables and pages that are kept in the repository."""
