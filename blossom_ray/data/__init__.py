"""Data: sources of samples, their partition over clients, test splits, and the clients' Arrow shards.

NumPy and pyarrow only: nothing here knows about models, training or where clients run.
"""
