"""Data: sources of samples, their partition over clients, test splits, and the clients' Arrow shards.

NumPy and pyarrow, and the libraries of the extras where a data set is decoded, imported when it is: nothing here
knows about models, training or where clients run.
"""
