"""The dataset for training, its batches, and their transfer to a device."""
