"""Collections whose samples are rows of a table or members of a tar file, not files of a folder."""
