"""Runs beside each other: sweeps, comparisons, reports, plans and jobs."""
