"""From a recipe to a finished run: the only place that knows all the stages."""
