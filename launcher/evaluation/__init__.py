"""How good a model is, how sure that is, and whether something simpler would do."""
