"""Parts of the image recipe: the random draws of a view, and the pixel operations."""
