"""Cells and their execution: crafting, checking and scoring adversarial images, and the records of a run."""
