"""Reports: one HTML page for a run, a sweep or several side by side, and its figures as files for a paper."""
