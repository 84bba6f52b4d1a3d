"""The recipes of image views and text views, and the encoding of texts as token ids."""
