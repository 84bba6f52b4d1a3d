"""The recipes of text views, and the encoding of their texts as token ids."""
