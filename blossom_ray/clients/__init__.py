"""What a client computes: it trains, scores, and keeps its private blocks. PyTorch, no Ray."""
