"""What is done with a run besides training it."""
