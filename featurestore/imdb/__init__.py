"""The MM-IMDb data set and its published files: genres, labels, splits, materialized features."""
