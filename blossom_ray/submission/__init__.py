"""Runs as Ray jobs: what a job takes along, the Jobs API, and the way of its run folder home."""
