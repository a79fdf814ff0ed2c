"""A run from its first to its last record: the session, its folder, tables and trackers."""
