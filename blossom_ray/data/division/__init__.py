"""Who gets which samples: partition, splits, the held-out set."""
