"""The ``artq`` command: it parses arguments, shows results and sets the exit status. Heavy imports are lazy.

Exit status: 0 done. 1: a cell failed, ``artq replay`` found an image that does not break the model, or ``artq compare``
found a difference beyond ``--fail-on``. 2: bad input (one line on stderr). 3: ``artq diagnose`` found INVALID, or a number
that is too high because gradients are hidden, or what its ``--fail-on`` names. 124: ``--time-limit`` is up. 130: interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from art_qplugins._version import __version__
from art_qplugins.errors import InputError, one_line
from art_qplugins.files import short_name, trouble
from art_qplugins.terminal.arguments import (
    ACCELERATOR,
    ADDRESS,
    ASK_KEYS,
    DEVICES,
    DOWNLOAD,
    EXECUTOR,
    OUT,
    PRECISION,
    PROFILE,
    RECIPE,
    ROOT,
    SET,
    WORKERS,
    AnyPath,
    ask_options,
    given_options,
)
from art_qplugins.terminal.fail_on import fails, verdicts_to_fail_on
from art_qplugins.terminal.kinds import KINDS
from art_qplugins.terminal.time_limit import Limited

if TYPE_CHECKING:
    from art_qplugins.recipes.schema import Recipe
    from art_qplugins.runner.runner import Runner

__all__ = ["main"]


class _Commands(click.Group):
    command_class = Limited


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="artq")
@click.option(
    "--log-level", default="warning", type=click.Choice(["debug", "info", "warning", "error"]), help="How much to log."
)
def artq(log_level: str) -> None:
    """Train, attack and check quantized networks: how robust are they really?"""
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s")


@artq.command()
@RECIPE
@OUT
@ROOT
@DOWNLOAD
@PROFILE
@SET
@ACCELERATOR
@DEVICES
@PRECISION
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Attack N images; the same as --set data.limit=N."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Do what comes before training, list the cells and what they cost, and write nothing.",
)
@click.option("--log", metavar="tensorboard:DIR|mlflow:URI", help="Also send losses and accuracies to a tracker.")
@EXECUTOR
@WORKERS
@ADDRESS
def run(
    recipe: Path,
    out: Path | None,
    data_root: Path | None,
    download: bool,
    profiles: tuple[str, ...],
    changes: tuple[str, ...],
    accelerator: str | None,
    devices: int | None,
    precision: str | None,
    limit: int | None,
    dry_run: bool,
    log: str | None,
    **executor: Any,
) -> None:
    """Train models without a checkpoint, attack, score, diagnose, report.

    RECIPE is a TOML file, or the name of a recipe that comes with this package. The same command again reuses finished
    cells. Example: artq run digits
    """
    from art_qplugins.recipes.load import load_recipe

    asked = _changes({"data.limit": limit, "accelerator": accelerator, "devices": devices, "precision": precision})
    settings, given = load_recipe(recipe, [*changes, *asked], profiles)
    from art_qplugins.runner.plan import plan
    from art_qplugins.terminal.asked import show_asked
    from art_qplugins.terminal.progress import LiveProgress
    from art_qplugins.terminal.results import show_plan, show_results
    from art_qplugins.terminal.trackers import LoggedProgress, check_tracker

    runner = _runner(settings, given, _folder(out, settings.name), data_root, download, **executor)
    if dry_run:
        if log:
            check_tracker(log)
        prepared = runner.prepare()
        show_plan(settings, *plan(settings, prepared.order), prepared.warnings, runner.costs(prepared))
        return
    with LoggedProgress(log) if log else LiveProgress() as progress:
        runner.progress = progress
        found = runner.run()
    show_results(found, progress)
    show_asked(settings)
    if found.results.status != "success":
        sys.exit(1)


@artq.command()
@click.argument("recipe", type=AnyPath(), required=False)
@click.option(
    "--model",
    metavar="MODULE:FACTORY",
    help="A function that returns a torch module, or a file (.pt2 of torch.export, .onnx, .tflite, OpenVINO .xml), instead of a "
    "recipe.",
)
@click.option(
    "--endpoint",
    metavar="MODULE:PREDICT",
    help="A function from images to scores or labels, or an ART BlackBoxClassifier, instead of a recipe.",
)
@ask_options
@click.option(
    "--checkpoint",
    type=AnyPath(),
    help="Weights for --model: a .safetensors file, a .pt file of tensors alone, or a .pt2 file.",
)
@click.option(
    "--twin",
    metavar="MODULE:FACTORY",
    help="The network whose gradient attacks on a deployed --model follow.  [default: one distilled from its answers]",
)
@click.option("--twin-checkpoint", type=AnyPath(), help="Weights for --twin.")
@click.option("--labels-only", is_flag=True, help="Look at nothing but the label that --model gives.")
@click.option(
    "--data", default="digits", show_default=True, help="Data set for --model; 'artq ls datasets' lists them."
)
@click.option(
    "--norm", default="Linf", type=click.Choice(["Linf", "L2", "L1", "L0"]), show_default=True, help="Norm for --model."
)
@click.option("--eps", default="8/255", show_default=True, help="eps for --model.")
@click.option("--attack", default="art:pgd", show_default=True, help="Claimed attack for --model.")
@click.option(
    "--claimed", type=float, help="Claimed accuracy for --model, in [0, 1].  [default: the accuracy under the attack]"
)
@click.option(
    "--abstain",
    type=click.IntRange(min=0),
    metavar="INDEX",
    help="The output with which --model rejects an image, from 0. An adversarial image that is rejected counts as robust.",
)
@OUT
@ROOT
@DOWNLOAD
@PROFILE
@SET
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use N images.  [default: the recipe's, or 200; 50 with --queries]",
)
@click.option(
    "--level",
    type=click.IntRange(0, 3),
    help="Level of the diagnosis: 0 measures, 1 adds cheap attacks, 2 all controls, 3 everything.  [default: 2, and 3 if "
    "something was found]",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    metavar="B",
    help="Gradient evaluations per image to spend.  [default: no limit]",
)
@click.option(
    "--fail-on",
    metavar="VERDICT,...",
    callback=verdicts_to_fail_on,
    help="Exit with status 3 on these: masked, overstated, suspect, inconclusive, invalid.  [default: invalid, and masked "
    "where the claimed number is too high]",
)
@EXECUTOR
@WORKERS
@ADDRESS
def diagnose(
    recipe: Path | None,
    model: str | None,
    endpoint: str | None,
    out: Path | None,
    data_root: Path | None,
    download: bool,
    profiles: tuple[str, ...],
    changes: tuple[str, ...],
    limit: int | None,
    level: int | None,
    budget: float | None,
    executor: Literal["serial", "ray"],
    workers: int | None,
    address: str | None,
    fail_on: frozenset[str] | None,
    **about: Any,
) -> None:
    """Test the robustness claims of a recipe, of any torch module, or of a model that only answers.

    Exit status 3 where a verdict is INVALID, or where hidden gradients made a claimed number too high, so that a CI job can
    depend on it. Example: artq diagnose --model mypackage.models:make_net --checkpoint weights.safetensors --data cifar10 --eps 8/255 --claimed 0.52
    """
    kind = _kind(recipe, model, endpoint)
    if recipe is None and profiles:
        raise InputError(f"--profile is for a RECIPE; leave it out with {kind}")
    if recipe is not None and (typed := given_options(list(about))):
        raise InputError(f"{typed[0]} is for --model; change the recipe with --set A.B=VALUE")
    ask = {key: about.pop(key) for key in ASK_KEYS}
    if model is not None and (typed := given_options(list(ask))):
        raise InputError(f"{typed[0]} is for --endpoint; leave it out with --model")
    if endpoint is not None and given_options(["checkpoint"]):
        raise InputError("--checkpoint is for --model; an endpoint has its own weights")
    from art_qplugins.recipes.load import change, parse_recipe, read_tables, tables_about, tables_about_endpoint

    if recipe is not None:
        tables = read_tables(recipe, profiles)
    elif endpoint is not None:
        cache = ask["cache"] or _folder(out, endpoint.replace(":", ".")) / "answers"
        tables = tables_about_endpoint(endpoint, {**ask, "cache": str(cache.absolute())}, limit, **about)
    else:
        tables = tables_about(str(model), **about)
    asked = _changes({"data.limit": limit, "diagnosis.level": level, "diagnosis.budget": budget})
    given = change(tables, [*changes, *asked])
    settings = parse_recipe(given, where=str(recipe or f"{kind} {endpoint if model is None else model}")).claims_alone()
    if not settings.attacks:
        raise InputError(f"recipe {settings.name!r} claims nothing; add [claim] with an attack and an eps")
    from art_qplugins.report import read_run
    from art_qplugins.terminal.asked import show_asked
    from art_qplugins.terminal.progress import LiveProgress
    from art_qplugins.terminal.results import show_diagnosis, show_results

    folder = _folder(out, settings.name.replace(":", ".") if recipe is None else f"{settings.name}-diagnosis")
    runner = _runner(settings, given, folder, data_root, download, executor=executor, workers=workers, address=address)
    with LiveProgress() as progress:
        runner.progress = progress
        found = runner.run()
    written = read_run(folder)
    for result in found.models:
        show_diagnosis(result, written)
    show_results(found, progress)
    show_asked(settings)
    if any(fails(m, fail_on) for m in found.models):
        sys.exit(3)
    if found.results.status != "success":
        sys.exit(1)


@artq.command()
@click.argument("evidence", type=AnyPath())
@click.option(
    "--model", required=True, metavar="MODULE:FACTORY", help="A function that returns the torch module, or a .pt2 file."
)
@click.option("--checkpoint", type=AnyPath(), help="Its weights, as for artq diagnose.")
def replay(evidence: Path, model: str, checkpoint: Path | None) -> None:
    """Evaluate a model again on the adversarial images in EVIDENCE of a diagnosis.

    Every distance is measured again, and no attack is run. The exit status is 0 if every image is legal and misclassified
    (by a random model: in at least a quarter of 20 fresh draws), else 1.
    Example: artq replay results/net/evidence/net.npz --model mypackage.models:make_net --checkpoint weights.safetensors
    """
    from art_qplugins.evidence import read_evidence
    from art_qplugins.evidence import replay as ask

    read_evidence(evidence)  # report a bad file before a network is built
    from art_qplugins.checkpoint import load_checkpoint
    from art_qplugins.recipes.factory import make_module
    from art_qplugins.terminal.results import show_replay

    module = make_module(model)
    if checkpoint is not None:
        load_checkpoint(checkpoint, module)
    found = ask(evidence, module)
    show_replay(found)
    if not found.holds:
        sys.exit(1)


@artq.command()
@RECIPE
@OUT
@ROOT
@DOWNLOAD
@PROFILE
@SET
@ACCELERATOR
@DEVICES
@PRECISION
@EXECUTOR
@WORKERS
@ADDRESS
def train(
    recipe: Path,
    out: Path | None,
    data_root: Path | None,
    download: bool,
    profiles: tuple[str, ...],
    changes: tuple[str, ...],
    accelerator: str | None,
    devices: int | None,
    precision: str | None,
    **executor: Any,
) -> None:
    """Train only the models without a checkpoint.

    An interrupted training goes on where its last state was saved. With --devices, or within torchrun, several processes
    share each batch. Example: artq train digits --devices 2
    """
    from art_qplugins.recipes.load import load_recipe

    settings, given = load_recipe(
        recipe,
        [*changes, *_changes({"accelerator": accelerator, "devices": devices, "precision": precision})],
        profiles,
    )
    from art_qplugins.terminal.progress import LiveProgress

    runner = _runner(settings, given, _folder(out, settings.name), data_root, download, **executor)
    with LiveProgress() as runner.progress:
        trained = runner.train()
    from art_qplugins.terminal.console import say

    say(f"checkpoints: {trained}")


def _kind(recipe: Path | None, model: str | None, endpoint: str | None) -> str:
    """What is diagnosed, as it is typed."""
    given = [
        kind for kind, it in {"a RECIPE": recipe, "--model": model, "--endpoint": endpoint}.items() if it is not None
    ]
    if len(given) != 1:
        raise InputError(
            "give a RECIPE or --model MODULE:FACTORY or --endpoint MODULE:PREDICT, one of them; see artq diagnose --help"
        )
    return given[0]


def _changes(asked: Mapping[str, Any]) -> list[str]:
    """Options of the command line as changes of the recipe."""
    return [f"{key}={value}" for key, value in asked.items() if value is not None]


def _folder(out: Path | None, name: str) -> Path:
    return out or Path("results") / short_name(name)


def _runner(
    settings: Recipe, given: dict[str, Any], folder: Path, data_root: Path | None, download: bool, **execution: Any
) -> Runner:
    from art_qplugins.runner.runner import Execution, Runner

    return Runner(
        settings,
        asked=given,
        out=folder,
        data_root=None if data_root is None else str(data_root),
        download=download,
        execution=Execution(**execution),
    )


@artq.command()
@RECIPE
@click.argument("path", type=AnyPath())
@click.option("--model", "name", required=True, metavar="NAME", help="A model of the recipe that is trained.")
@click.option(
    "--to",
    default="onnx",
    type=click.Choice(["onnx", "pt2", "torchao"]),
    show_default=True,
    help="onnx and torchao hold integers, pt2 the network in float32.",
)
@click.option(
    "--bias",
    default="int",
    type=click.Choice(["int", "float"]),
    show_default=True,
    help="int for integer kernels; float where answers may not change at all.",
)
@OUT
@ROOT
@DOWNLOAD
@PROFILE
@SET
def export(
    recipe: Path,
    path: Path,
    name: str,
    to: Literal["onnx", "pt2", "torchao"],
    bias: Literal["int", "float"],
    out: Path | None,
    data_root: Path | None,
    download: bool,
    profiles: tuple[str, ...],
    changes: tuple[str, ...],
) -> None:
    """Write a trained model of a recipe to PATH, and compare its labels with the model's.

    Activations of 1 to 8 bits become uint8, weights int8 for each channel. Of weights that are mapped by the mu-law no
    integer form exists: they stay float32. A random model is written as frozen members: its noise becomes constant.
    Example: artq export digits net.onnx --model dq-2bit
    """
    from art_qplugins.recipes.load import load_recipe

    settings, _ = load_recipe(recipe, list(changes), profiles)
    from art_qplugins.runner.export import export_model
    from art_qplugins.runner.prepare import Images
    from art_qplugins.terminal.results import show_export

    images = Images(root=None if data_root is None else str(data_root), download=download)
    show_export(*export_model(settings, name, path, run=_folder(out, settings.name), images=images, to=to, bias=bias))


@artq.command()
@click.argument("folder", type=AnyPath())
def report(folder: Path) -> None:
    """Write the report of a run's FOLDER again from its records."""
    from art_qplugins.report import write_report
    from art_qplugins.terminal.console import say

    for path in write_report(folder):
        say(path)


@artq.command()
@click.argument("a", type=AnyPath())
@click.argument("b", type=AnyPath())
@click.option(
    "--fail-on",
    "limits",
    multiple=True,
    metavar="METRIC:LIMIT%",
    help="End with status 1 where B differs from A by more points, e.g. robust_accuracy:-1% or clean_accuracy:-0.5%.",
)
def compare(a: Path, b: Path, limits: tuple[str, ...]) -> None:
    """Compare the runs in folders A and B, model by model and image by image.

    Both must be on the same images. The difference is B minus A in points with a 95 % bootstrap interval. p is
    McNemar's exact test, for random models a sign-flip test. Holm's p is corrected for all rows of the table. With
    --fail-on, a model, a number or an attack that only A has fails too. Example: artq compare results/main results/branch --fail-on
    robust_accuracy:-1%
    """
    from art_qplugins.report.limits import parse_limit

    forbidden = [parse_limit(limit) for limit in limits]
    from art_qplugins.evaluation.compare import compare as paired
    from art_qplugins.report import read_run
    from art_qplugins.terminal.console import say
    from art_qplugins.terminal.results import show_comparison

    found = paired(read_run(a), read_run(b))
    show_comparison(found)
    broken = [line for limit in forbidden for line in limit.broken_by(found)]
    for line in broken:
        say(f"FAILED: {line}")
    if broken:
        sys.exit(1)


@artq.command()
@click.argument("folders", nargs=-1, required=True, type=AnyPath())
@click.option("--out", type=AnyPath(), metavar="FILE", help="Also write the table as JSON.")
@click.option("--check", is_flag=True, help="Begin with the order that cascades use: what would it do in these runs?")
def tune(folders: tuple[Path, ...], out: Path | None, check: bool) -> None:
    """Learn from the runs in FOLDERS the order in which attacks break most images for their passes.

    Prints what each attack breaks of the images that those before it left, and a line 'order = [...]' for the recipe of a cascade.
    Example: artq tune results/digits results/mnist
    """
    from art_qplugins.evaluation.order import as_json, learn, shipped
    from art_qplugins.evaluation.reading import read_records
    from art_qplugins.files import write_atomically
    from art_qplugins.terminal.results import show_order

    order = learn((read_records(folder) for folder in folders), first=shipped() if check else ())
    show_order(order)
    if out is not None:
        write_atomically(out, as_json(order))


@artq.command("ls")
@click.argument("kind", type=click.Choice(list(KINDS)), required=False)
def list_names(kind: str | None) -> None:
    """List what recipes can name and what other packages can add to, with the package that adds it."""
    from art_qplugins.terminal.registries import show_registries

    show_registries(kind)


@artq.command()
@click.argument("name", required=False)
def explain(name: str | None) -> None:
    """Explain a verdict or a check, e.g. MASKED or logit-scale. Without NAME, the whole table of the diagnosis."""
    from art_qplugins.terminal.explain import show_explanation

    show_explanation(name)


@artq.command()
def doctor() -> None:
    """Say whether this machine can run everything, and which installed plug-ins are broken."""
    from art_qplugins.terminal.health import show_health

    if not show_health():
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """The console script."""
    # Before torch is loaded: threads that wait for others would hold cores that somebody else needs, and slow down both.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may have characters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        artq.main(arguments, prog_name="artq", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted; the same command again continues from here", 130)
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        _fail(f"{error.format_message()}{hint}", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2 if error.exit_code == 1 else error.exit_code)
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command again continues from here", 130)
    except OSError as error:
        _fail(f"{trouble(error)}; then the same command goes on from the finished cells", 1)


def _fail(message: str, status: int) -> Any:
    click.echo(one_line(f"artq: {message}"), err=True)
    sys.exit(status)
