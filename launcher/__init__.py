"""launcher: from one recipe to a finished, evaluated, usable fine-tuned model."""

__version__ = "0.1.0"
