"""Collections whose samples are rows of tables: files of tables, metadata, saved data sets."""
