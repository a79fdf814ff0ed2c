"""Runs compared: pairs, gains and intervals."""
