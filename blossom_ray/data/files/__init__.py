"""Archives, the cache, and files elsewhere."""
