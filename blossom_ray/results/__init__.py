"""A run on disk: its folder, its tables, its log."""
