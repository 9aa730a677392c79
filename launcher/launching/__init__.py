"""From a recipe to the files that start a run, without torch."""
