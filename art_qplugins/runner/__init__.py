"""Runs a recipe. This is the only package that knows all stages of a run."""
