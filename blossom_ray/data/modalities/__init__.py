"""Kinds of modality of own data: how a value of a column becomes a sample. A file per kind."""
