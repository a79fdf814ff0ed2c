"""The stacked engine: clients with the same model train and are scored together, on stacked block vectors."""
