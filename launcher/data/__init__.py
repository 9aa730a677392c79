"""Rows: where they come from, their labels, how they are split, tokenized and ordered."""
