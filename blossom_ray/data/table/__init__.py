"""A user's own data in a table."""
