"""Training steps in C, one client after the other, its parameters in the processor's caches."""
