"""What the endpoints of a recipe were asked, at the end of a run."""

from __future__ import annotations

from pathlib import Path

from art_qplugins.deployment.answers import Answers, kept_as
from art_qplugins.recipes.schema import Recipe
from art_qplugins.terminal.console import say

__all__ = ["show_asked"]


def show_asked(recipe: Recipe) -> None:
    """A line for each endpoint whose answers are kept."""
    for model in recipe.models:
        if model.endpoint is not None and model.ask.cache is not None:
            kept = Answers(Path(model.ask.cache), kept_as(model.endpoint, labels_only=model.labels_only))
            most = "" if model.ask.queries is None else f" of {model.ask.queries:,}"
            say(f"{model.name}: {kept.asked:,}{most} queries so far, with those of earlier runs")
