"""Which leaves train, and why: patterns, norms, defaults."""
