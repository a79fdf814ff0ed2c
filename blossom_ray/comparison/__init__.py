"""Runs beside each other: pairs, gains, intervals, and the formats of the table."""
