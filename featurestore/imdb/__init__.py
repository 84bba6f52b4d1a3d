"""MM-IMDb and its published files: genres, labels, splits, materialized features."""
