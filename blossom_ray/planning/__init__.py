"""What a run would take: bytes, seconds, and the largest setting that fits."""
