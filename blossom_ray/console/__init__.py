"""What a person sees: views of a run, tables, and the answers of `plan` and `data` on a terminal."""
