"""Which parameters train, and how fast: one file per strategy, each a pure function to a tuning table."""
