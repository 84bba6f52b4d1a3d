"""How views are made of an image and of a text, and how texts become token ids."""
