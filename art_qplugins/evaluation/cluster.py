"""Functions that run on the processes, accelerators and machines of a Ray cluster.

Ray restarts a task whose worker or machine was lost on another worker.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from art_qplugins.errors import InputError, shown
from art_qplugins.foreign import raised
from art_qplugins.plugins import Plugin
from art_qplugins.recipes.packages import installed

__all__ = ["Cluster", "LostWorker", "check_packages", "here"]

#: How often a task is restarted after its worker or its machine was lost.
_RETRIES = 3
#: Seconds within which the head of a cluster has to answer.
_PATIENCE = 5.0


class LostWorker(Exception):
    """A task lost its worker every time. The message says why in one line."""


class Cluster:
    """A Ray cluster. It is a context that stops the cluster if it started it.

    :param workers: number of tasks at a time. By default it is one per accelerator of the cluster, else one per core.
    :param address: address of a running cluster, or ``"auto"`` for the one of this machine. ``None`` starts one here.
    :param threads: threads of torch in every worker. By default the cores of the cluster are divided among the workers.
    :raises InputError: where Ray is missing or the cluster does not respond.
    """

    def __init__(self, *, workers: int | None = None, address: str | None = None, threads: int | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("the executor 'ray' needs Ray; type pip install 'art_qplugins[ray]'") from None
        self._ray, self._owned = ray, not ray.is_initialized()
        if self._owned:
            _connect(ray, workers, address)
        have = ray.cluster_resources()
        cores, accelerators = have.get("CPU", 1.0), have.get("GPU", 0.0)
        self.workers = workers or max(1, int(accelerators or cores))
        share = max(1, int(cores // self.workers))
        self.threads = threads or share
        self._needs = {"num_cpus": min(share, cores / self.workers), "num_gpus": min(1.0, accelerators / self.workers)}
        self._remote = functools.cache(self._make_remote)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self._ray.shutdown()

    def _make_remote(self, function: Callable[..., Any]) -> Any:
        return self._ray.remote(function).options(max_retries=_RETRIES, **self._needs)

    def put(self, value: Any) -> Any:
        """A reference to give to tasks in place of the value, which each machine gets once."""
        return self._ray.put(value)

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start a task: call the function on a worker, as soon as one is free."""
        return self._remote(function).remote(*arguments)

    def first_of(self, tasks: Iterable[Any]) -> Any:
        """Wait until one of the tasks has ended, and return that one."""
        (ended, *_), _ = self._ray.wait(list(tasks), num_returns=1)
        return ended

    def result(self, task: Any) -> Any:
        """What a task returned.

        :raises InputError: where the task raised one. Any other error of it is Ray's.
        :raises LostWorker: where the task could not end.
        """
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise LostWorker(f"{type(error).__name__}: its worker was lost {_RETRIES + 1} times: {reason}") from None

    def cancel(self, tasks: Iterable[Any]) -> None:
        """End tasks whose results nobody waits for."""
        for task in tasks:
            with contextlib.suppress(Exception):
                self._ray.cancel(task, force=True)


def _connect(ray: Any, workers: int | None, address: str | None) -> None:
    if address is not None:
        _reach(address)
    quiet = {"include_dashboard": False} if address is None else {}
    cores = {"num_cpus": workers} if address is None and workers is not None else {}
    # Without a limit, Ray restarts tasks that exceed the machine's memory again and again.
    limit = {"_system_config": {"task_oom_retries": _RETRIES}} if address is None else {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="error", **quiet, **cores, **limit)
    except (Exception, SystemExit) as error:  # Ray exits where a cluster does not answer
        raise _no_cluster(address, raised(error)) from None


def _reach(address: str) -> None:
    """Ray waits minutes for a host that does not answer, and then exits.

    :raises InputError: where nothing listens at a ``HOST:PORT``, also of ``ray://HOST:PORT``.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_cluster(address, raised(error)) from None


def _no_cluster(address: str | None, why: str) -> InputError:
    if address is None:
        return InputError(f"Ray does not start on this machine ({why}); try again, or without --executor ray")
    return InputError(f"address {shown(address)}: no Ray cluster there ({why}); start one with ray start --head")


# --- In a worker


def here() -> str:
    return f"worker on {socket.gethostname()}"


def check_packages(wanted: Sequence[Plugin]) -> None:
    """Check that the other packages of a recipe are installed in the same version.

    :raises InputError: where one is not.
    """
    for plugin in wanted:
        if (found := installed(plugin)) != plugin.version:
            there = f"has {plugin.package} {found}" if found else f"lacks {plugin.package}"
            raise InputError(f"{here()}: {there}, and the run began with {plugin}; install the same everywhere")
