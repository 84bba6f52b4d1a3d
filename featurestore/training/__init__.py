"""The dataset, its batches, and the device that they are computed on."""
