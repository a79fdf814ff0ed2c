"""The late-fusion model: encoders, fusions, heads, a client's model, and blocks as flat vectors."""
