"""Runtimes: where clients are trained and scored. `base` is the interface, `local` and `actors` implement it."""
