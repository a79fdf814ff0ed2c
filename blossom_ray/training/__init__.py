"""What a client computes: local epochs, one client after the other or in stacks, and its scores."""
