"""Labels of any collection: their kinds, files and splits."""
