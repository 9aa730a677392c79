"""The recipe: its sections (schema), how it is read (load), and what is checked before anything starts (checks)."""
