"""What a terminal shows: tables, a line per round, the live view."""
