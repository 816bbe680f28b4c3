"""Cells on a Ray cluster: the same records as in one process, whatever happens to its workers and machines."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from pickled import Losing, Pickled

import art_qplugins
from art_qplugins.errors import InputError
from art_qplugins.evaluation import cluster
from art_qplugins.evaluation import ray as executor
from art_qplugins.evaluation.cell import CellSpec, Shard
from art_qplugins.evaluation.cluster import Cluster
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Serial, run_cells
from art_qplugins.evaluation.ray import RayExecutor, RecipeJob
from art_qplugins.evaluation.store import Memory
from art_qplugins.recipes.build import build_models, estimator_for
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner import runner

SMALL = {"name": "convnet", "options": {"width": 2}}
RECIPE = {
    "name": "small",
    "threads": 1,
    "batch_size": 8,
    "data": {"name": "digits", "limit": 20},
    "threat": {"norm": "Linf", "eps": [0.05, 0.15]},
    "models": [
        {"name": "net", "architecture": SMALL, "train": {"epochs": 1}},
        {
            "name": "sq",
            "architecture": SMALL,
            "quantize": {"activation_bits": 2, "alpha": 2.0},
            "draws": 2,
            "train": {"epochs": 1},
        },
    ],
    "attacks": [{"id": "art:pgd", "options": {"max_iter": 3}}],
}
PGD = CellSpec(model="net", source="net", attack="art:pgd", norm="Linf", eps=0.1, seed=0, options={"max_iter": 3})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A recipe's job, and the evaluator of the process that trained its models."""
    folder, recipe = tmp_path_factory.mktemp("checkpoints"), parse_recipe(RECIPE)
    modules = build_models(recipe, digits[0], folder, device=next(iter(_devices())))
    job = RecipeJob.of(recipe, modules, folder, digits[1].sha256, None)
    test = digits[1].take(20, seed=0)
    estimators = {m.name: estimator_for(m, modules[m.name], digits[0]) for m in recipe.models}
    return job, Evaluator(estimators, test.x(), test.y(), test.ids, recipe.batch_size, recipe.shard)


def _devices():
    import torch

    yield torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- What a worker is told


def test_a_worker_comes_to_the_same_cells_from_paths_and_hashes(trained):
    job, here = trained
    sent = pickle.dumps(job)
    assert b"torch" not in sent and len(sent) < 10_000
    there = pickle.loads(sent).evaluator()
    for model in ("net", "sq"):
        spec = CellSpec(model=model, source=model, attack="art:pgd", norm="Linf", eps=0.1, seed=0)
        assert there.id_of(spec) == here.id_of(spec)


def test_what_is_not_what_the_run_began_with_is_refused(trained, tmp_path):
    job, _ = trained
    (path, sha256) = next(iter(job.checkpoints.items()))
    for wrong, reason in (
        (RecipeJob(job.recipe, {path: "0" * 64}, job.data, None, []), "is not the one that the run began with"),
        (
            RecipeJob(job.recipe, {str(tmp_path / "gone"): sha256}, job.data, None, []),
            "give --out a folder that all machines see",
        ),
        (RecipeJob(job.recipe, job.checkpoints, "0" * 64, None, []), "data set 'digits' has other content there"),
    ):
        with pytest.raises(InputError, match=reason):
            wrong.evaluator()


def test_a_worker_of_other_versions_takes_no_part(trained, monkeypatch):
    job, here = trained
    shard = here.shards(PGD)[0]
    monkeypatch.setattr(Evaluator, "id_of", lambda self, spec: "another")
    with pytest.raises(InputError, match="install the same everywhere"):
        executor._run_shard(job, 1, shard)


def test_workers_load_the_models_of_a_recipe_and_come_to_its_records(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "Cluster", Pickled)
    runs = [
        art_qplugins.run({**RECIPE, "diagnose": False}, out=tmp_path / name, executor=name)
        for name in ("serial", "ray")
    ]
    a, b = ([cell.model_copy(update={"seconds": 0.0}) for cell in run.cells] for run in runs)
    assert a == b and all(cell.status == "success" for cell in a)


def test_workers_put_mixtures_together(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "Cluster", Pickled)
    net, _ = RECIPE["models"]
    mixed = [net, net | {"name": "other", "seed": 1}]
    mixed += [
        {"name": "both", "members": ["net", "other"]},
        {"name": "any", "members": ["net", "other"], "random": True},
    ]
    recipe = RECIPE | {"models": mixed, "diagnose": False, "threat": {"eps": [0.1]}}
    runs = [art_qplugins.run(recipe, out=tmp_path / name, executor=name) for name in ("serial", "ray")]
    a, b = ([cell.model_copy(update={"seconds": 0.0}) for cell in run.cells] for run in runs)
    assert a == b and len(a) == 8 and all(cell.status == "success" for cell in a)
    assert len(list((tmp_path / "ray" / "checkpoints").glob("*.safetensors"))) == 2


def test_a_checkpoint_that_was_removed_is_told(tmp_path, digits):
    recipe = parse_recipe(RECIPE)
    modules = build_models(recipe, digits[0], tmp_path, device=next(iter(_devices())))
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="the checkpoint of net was removed; run the same command again"):
        RecipeJob.of(recipe, modules, tmp_path, digits[1].sha256, None)


def test_without_ray_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'art_qplugins\[ray\]'"):
        art_qplugins.run(RECIPE, out=tmp_path / "run", executor="ray")
    assert not (tmp_path / "run").exists()


def test_a_shard_whose_worker_is_lost_is_a_failed_attempt(trained):
    job, here = trained
    (found, *_) = RayExecutor(Losing(), job).map(here.shards(PGD))
    assert found.outcome.cell.status == "error" and "its worker was lost 4 times: why" in found.outcome.cell.error


def test_workers_without_a_cluster_are_a_mistake(tmp_path):
    for options in ({"workers": 2}, {"address": "auto"}):
        with pytest.raises(InputError, match="add --executor ray"):
            art_qplugins.run(RECIPE, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# --- The address of a cluster


def closed_port():
    """A port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "no such host:{}", "é" * 100 + ":{}"]
)
def test_an_address_where_nobody_listens_is_one_line_at_once(address, monkeypatch):
    """Ray itself waits for minutes, and then exits."""
    address = address.format(closed_port())
    ray = SimpleNamespace(init=lambda *_, **__: pytest.fail("Ray was asked"))
    with pytest.raises(
        InputError, match=r"^address '.*: no Ray cluster there .*; start one with ray start --head$"
    ) as said:
        cluster._connect(ray, None, address)
    assert len(str(said.value)) <= 300


@pytest.mark.parametrize("error", [SystemExit(15), ValueError("::::"), TypeError(), ConnectionError("auto")], ids=repr)
def test_what_ray_raises_or_that_it_exits_is_one_line(error):
    def init(*_, **__):
        raise error

    with pytest.raises(InputError, match=rf"^address 'auto': no Ray cluster there \({type(error).__name__}"):
        cluster._connect(SimpleNamespace(init=init), None, "auto")


def test_a_cluster_that_cannot_be_started_here_is_one_line():
    def init(*_, **__):
        raise RuntimeError("no memory")

    with pytest.raises(
        InputError, match=r"^Ray does not start on this machine \(RuntimeError: no memory\); try again, or"
    ):
        cluster._connect(SimpleNamespace(init=init), None, None)


# --- In a cluster

# Ray leaves sockets and processes to the garbage collector, and warns of its own plans.
noisy = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def two_nodes():
    ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'art_qplugins[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def by_cell(evaluator, specs, executor):
    store = Memory()
    found = {o.cell.id: o for _, o, _ in run_cells(evaluator, specs, store, executor)}
    return {name: (untimed(o), store.images(name) if o.ok else None) for name, o in found.items()}


def untimed(outcome):
    return outcome.cell.model_copy(update={"seconds": 0.0}), list(outcome.samples())


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name][0] == b[name][0]
        np.testing.assert_array_equal(a[name][1], b[name][1])


@pytest.mark.slow
@noisy
def test_a_machine_that_is_lost_costs_what_it_had_in_flight(trained, two_nodes, tmp_path, monkeypatch):
    job, here = trained
    nodes, second = two_nodes
    specs = [CellSpec(**{**vars(PGD), "model": m, "source": m, "eps": e}) for m in ("net", "sq") for e in (0.1, 0.2)]
    begun = tmp_path / "begun"
    begun.mkdir()
    run_shard = executor._run_shard

    def slow(job, threads, shard):
        (begun / f"{shard.id}@{os.getpid()}").touch()
        time.sleep(1)
        return run_shard(job, threads, shard)

    def lose_a_machine():
        while len({p.name.split("@")[1] for p in begun.iterdir()}) < 2:
            time.sleep(0.1)
        nodes.remove_node(second, allow_graceful=False)

    monkeypatch.setattr(executor, "_run_shard", slow)
    losing = threading.Thread(target=lose_a_machine)
    losing.start()
    with Cluster(workers=2, threads=1) as both:
        found = by_cell(here, specs, RayExecutor(both, job))
    losing.join()
    same(found, by_cell(here, specs, Serial(here)))
    shards = sum(len(here.shards(spec)) for spec in specs)
    assert shards < len(list(begun.iterdir())) <= shards + 2  # again: what was there, and perhaps a result kept there


@pytest.mark.slow
@noisy
def test_a_shard_that_takes_its_worker_down_is_a_failed_cell(trained, two_nodes, monkeypatch):
    job, here = trained
    other = CellSpec(**{**vars(PGD), "eps": 0.2})
    bad, run_shard = here.shards(PGD)[1].id, executor._run_shard

    def deadly(job, threads, shard: Shard):
        if shard.id == bad:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_shard(job, threads, shard)

    monkeypatch.setattr(executor, "_run_shard", deadly)
    with Cluster(workers=2, threads=1) as both:
        found = by_cell(here, [PGD, other], RayExecutor(both, job))
    failed, _ = found[here.id_of(PGD)][0]
    assert failed.status == "error" and "its worker was lost 4 times" in failed.error
    good = found[here.id_of(other)]
    same({"": good}, {"": by_cell(here, [other], Serial(here))[here.id_of(other)]})


@pytest.mark.slow
@noisy
def test_a_recipe_gives_the_same_records_on_a_cluster(tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'art_qplugins[ray]'")
    recipe = {**RECIPE, "claim": {"attack": "art:pgd", "eps": 0.15}}
    runs = [
        art_qplugins.run({**recipe, "diagnosis": {"level": 1}}, out=tmp_path / name, **options)
        for name, options in (("serial", {}), ("ray", {"executor": "ray", "workers": 2}))
    ]
    a, b = ([c.model_copy(update={"seconds": 0.0}) for c in results.cells] for results in runs)
    assert a == b and runs[0].models == runs[1].models
    assert (tmp_path / "serial" / "samples.jsonl").read_bytes() == (tmp_path / "ray" / "samples.jsonl").read_bytes()
