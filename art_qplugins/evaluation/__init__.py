"""Records, cells and their execution: what was attacked, how it was checked, what is left."""
