"""From files to a checked scenario, and back to people. Alone knows YAML."""
