"""Words without PyTorch: what everything else speaks of."""
