"""Where runs run: one file per backend."""
