"""Recipes: the settings of a run, checked, and the models that they name."""
