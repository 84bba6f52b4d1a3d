"""The image recipe's parts: what is drawn for a view, and the operations on pixels."""
