"""The official data sets and generated data, a file for each."""
