"""Whether a store can be continued, and what is to be added to it."""
