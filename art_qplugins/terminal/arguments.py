"""Arguments and options that several commands share. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from art_qplugins.files import as_path
from art_qplugins.training.precisions import PRECISIONS

__all__ = [
    "ACCELERATOR",
    "ADDRESS",
    "ASK_KEYS",
    "DEVICES",
    "DOWNLOAD",
    "EXECUTOR",
    "OUT",
    "PRECISION",
    "PROFILE",
    "RECIPE",
    "ROOT",
    "SET",
    "WORKERS",
    "AnyPath",
    "ask_options",
    "given_options",
]


class AnyPath(click.Path):
    """A path that a file or folder can have. Whether something is there is not looked at."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """:raises InputError: for an empty path and for one that no file can have."""
        where = "" if param is None else f"{param.opts[-1]} "
        return as_path(value, where=where, hint="give another path")


RECIPE = click.argument("recipe", type=AnyPath())
PROFILE = click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="Take [profiles.NAME] of the recipe: its tables win, and results go to results/RECIPE-NAME. It may be given again.",
)
SET = click.option("--set", "changes", multiple=True, metavar="A.B=VALUE", help="Change one setting of the recipe.")
OUT = click.option("--out", type=AnyPath(), help="Folder for the results.  [default: results/NAME]")
ROOT = click.option(
    "--data-root", type=AnyPath(), help="The data folder.  [default: $ARTQ_DATA, else the platform's cache]"
)
DOWNLOAD = click.option("--download", is_flag=True, help="Fetch a missing data set.")
ACCELERATOR = click.option(
    "--accelerator",
    type=click.Choice(["auto", "cpu", "gpu"]),
    help="Where models are trained and attacked; the same as --set accelerator=...  [default: a GPU if there is one]",
)
DEVICES = click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that train a model together, a GPU each where there are some; the same as --set devices=N.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Precision of training where a model names none; the same as --set precision=...",
)
EXECUTOR = click.option(
    "--executor",
    type=click.Choice(["serial", "ray"]),
    default="serial",
    show_default=True,
    help="Train models and compute cells in this process, or several at a time on a Ray cluster.",
)
WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes of --executor ray.  [default: one for every GPU, else for every core]",
)
ADDRESS = click.option(
    "--address", help="Address of a running Ray cluster, or auto.  [default: start one on this machine]", metavar="ADDR"
)


#: How an endpoint is asked: the keys of a recipe's table ``ask``, and their options.
ASK_KEYS = ("queries", "seconds", "batch_size", "concurrency", "retries", "cache")
_ASK = (
    click.option(
        "--queries",
        type=click.IntRange(min=1),
        metavar="N",
        help="Images that --endpoint may be asked, with those of earlier runs whose answers are in its cache. They are "
        "divided among the images.  [default: no limit]",
    ),
    click.option(
        "--seconds",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Seconds in which --endpoint may be asked.  [default: no limit]",
    ),
    click.option(
        "--batch",
        "batch_size",
        type=click.IntRange(min=1),
        metavar="N",
        help="Images in one call of --endpoint.  [default: 64]",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 1000),
        metavar="N",
        help="Calls of --endpoint at a time, in each process.  [default: 1]",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        metavar="N",
        help="Further attempts of a call that fails, each after a longer wait.  [default: 5]",
    ),
    click.option(
        "--cache",
        type=AnyPath(),
        metavar="DIR",
        help="Folder of the answers of --endpoint, which are not asked again.  [default: answers, in the folder of results]",
    ),
)


def ask_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how an endpoint is asked."""
    for option in reversed(_ASK):
        command = option(command)
    return command


def given_options(names: list[str]) -> list[str]:
    """Those of the current command's options that were typed, e.g. ``["--eps"]``."""
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    return [
        p.opts[-1] for p in context.command.params if p.name in names and context.get_parameter_source(p.name) is typed
    ]
