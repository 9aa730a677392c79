"""What a run will need and do, before it starts."""
