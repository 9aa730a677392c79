"""What models learn: one file per family of tasks."""
