"""Who trains in a round, and how the server steps."""
