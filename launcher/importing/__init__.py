"""Recipes from configurations of other tools: what is translated, what is not needed, and what is missed, key by key."""
