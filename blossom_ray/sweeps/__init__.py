"""Many runs: which cells a sweep has, and how they are run side by side, resumed and shown."""
