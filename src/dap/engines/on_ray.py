"""The Ray engine: actors of a cluster make the units, and this process alone writes the set.

Each actor loads the backbone once. The actors give back images, so the cluster needs no shared file system for the set. Ray
itself starts an actor again whose process or node has died, and tries its units again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from dap.base.errors import DapError, NotFinite, first_line
from dap.base.watch import Watcher
from dap.methods.base import Made, Unit

RESTARTS = 3
"""How often Ray starts an actor again that has died, and how often a unit whose actor was lost for good goes to another one; see
`workers.AGAIN` for the number."""

AHEAD = 2
"""How many units an actor is given at a time. While it sends one, it makes the next."""

LOOK = 5.0
"""Seconds between two looks at what the cluster has room for. A node that joins is used after this time."""

Build = Callable[..., Callable[[Unit], Made]]
"""A function of a module that loads everything that a recipe names, and returns what makes the images of a unit."""


@dataclass(frozen=True)
class Cluster:
    """Where and how Ray works.

    Attributes:
        address: the address of the cluster; None: that of RAY_ADDRESS or, where there is none, a new one on this machine.
        most: the most actors at the same time; None: as many as the cluster has room for.
        gpu: whether an actor takes a GPU, if the cluster has any.
        threads: the CPU threads of an actor. An actor without a GPU takes as many CPUs of the cluster, and one with a GPU
            takes one CPU.
    """

    address: str | None = None
    most: int | None = None
    gpu: bool = True
    threads: int = 1


def check_installed() -> None:
    """Raise `DapError` if Ray is not installed."""
    if find_spec("ray") is None:
        raise DapError("--engine ray needs Ray, which is not installed; run pip install 'diffusion-as-priors[ray]'.")


def stream(
    cluster: Cluster, build: Build, given: Sequence[Any], watcher: Watcher, units: Sequence[Unit]
) -> Iterator[tuple[Unit, Made | NotFinite]]:
    """Make units on a cluster. Yields each with its images as soon as it is made.

    Args:
        cluster: the cluster.
        build: called once in each actor, with `given`.
        given: what can be sent to other machines.
        watcher: is told how many actors work, and of those that have died.
        units: the units.

    Raises:
        DapError: the cluster cannot be reached, a unit cannot be made, or its actor has died too often.
    """
    import ray

    if not units:
        return
    _connect(cluster)
    crew = _Crew(cluster, build, given, watcher)
    try:
        yield from crew.run(list(units))
    finally:
        crew.end()
        ray.shutdown()


class Actor:
    """Makes units. It loads everything when the first unit is asked for."""

    def __init__(self, build: Build, given: Sequence[Any], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._build, self._given = build, given
        self._make: Callable[[Unit], Made] | None = None

    def ready(self) -> None:
        """Returns as soon as the actor has its place in the cluster."""

    def make(self, unit: Unit) -> Made | NotFinite | str:
        """The images of a unit, on the CPU. Or why it is not finite, or the message of a user's mistake: as an error, Ray would
        wrap it."""
        try:
            if self._make is None:
                self._make = self._build(*self._given)
            made = self._make(unit)
        except NotFinite as error:
            return error
        except DapError as error:
            return str(error)
        return replace(made, images=made.images.detach().cpu(), latents=None)


def _connect(cluster: Cluster) -> None:
    import ray

    address = cluster.address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError, OSError) as error:
        where = f"at {address}" if address else "on this machine"
        raise DapError(
            f"No Ray cluster {where} can be reached ({first_line(error).rstrip('.')}). Start one with ray start --head, and give "
            "its --address."
        ) from error


class _Crew:
    """The actors of a run. Their number follows what the cluster has room for."""

    def __init__(self, cluster: Cluster, build: Build, given: Sequence[Any], watcher: Watcher) -> None:
        import ray

        gpus = 1 if cluster.gpu and ray.cluster_resources().get("GPU") else 0
        self._needs = {"GPU": gpus} if gpus else {"CPU": cluster.threads}
        kind: Any = ray.remote(Actor)
        self._kind = kind.options(
            num_cpus=1 if gpus else cluster.threads,
            num_gpus=gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        self._given = (build, tuple(given), cluster.threads)
        self._watcher, self._most, self._looked = watcher, cluster.most, 0.0
        self._waiting: dict[Any, Any] = {}
        """Actors that have no place in the cluster yet, by the result of `ready`."""
        self._working: dict[Any, int] = {}
        """How many units each actor has."""
        self._failed: dict[Unit, int] = {}

    def run(self, todo: list[Unit]) -> Iterator[tuple[Unit, Made | NotFinite]]:
        """Every unit with its images, in the order in which they are made."""
        import ray

        asked: dict[Any, tuple[Unit, Any]] = {}
        while todo or asked:
            self._grow(len(todo))
            for actor, has in list(self._working.items()):
                for unit in todo[: AHEAD - has]:
                    asked[actor.make.remote(unit)] = unit, actor
                    self._working[actor] += 1
                del todo[: max(0, AHEAD - has)]
                if not self._working[actor]:  # its place may be wanted for an actor that is started again
                    self._stop(actor)
            done, _ = ray.wait([*asked, *self._waiting], num_returns=1, timeout=LOOK)
            for result in done:
                if result in self._waiting:
                    self._join(result)
                    continue
                unit, actor = asked.pop(result)
                if actor in self._working:
                    self._working[actor] -= 1
                made = self._result(result, unit, actor)
                if made is None:
                    todo.insert(0, unit)
                else:
                    yield unit, made

    def _grow(self, todo: int) -> None:
        """Ask for as many actors as the cluster has room for, and for one more, which waits for a node to join."""
        import ray

        wanted = min(todo, (self._most or todo) - len(self._working)) - len(self._waiting)
        if wanted <= 0 or time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        if self._most is None:
            free = ray.available_resources()
            room = min(int(free.get(name, 0) // count) for name, count in self._needs.items())
            wanted = min(wanted, max(room, 0 if self._waiting else 1))
        for _ in range(wanted):
            actor = self._kind.remote(*self._given)
            self._waiting[actor.ready.remote()] = actor

    def _join(self, result: Any) -> None:
        """An actor has got its place, or has died before."""
        import ray
        from ray.exceptions import RayError

        actor = self._waiting.pop(result)
        with suppress(RayError):
            ray.get(result)
            self._working[actor] = 0
            self._watcher.note(f"Ray: {len(self._working)} actors")

    def _result(self, result: Any, unit: Unit, actor: Any) -> Made | NotFinite | None:
        """The images of a unit; None if its actor was lost, so that another one must make them.

        Raises:
            DapError: the unit cannot be made, or its actors have died too often.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            made: Any = ray.get(result)
        except RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except RayError as error:
            if actor in self._working:
                self._watcher.note(f"Ray: an actor was lost ({type(error).__name__}); others take its units.")
            self._stop(actor)
            self._failed[unit] = self._failed.get(unit, 0) + 1
            if self._failed[unit] > RESTARTS:
                raise DapError(
                    f"Class {unit.label}, slots from {unit.slots[0]}: {self._failed[unit]} actors of Ray were lost over these "
                    f"images ({first_line(error)}). What was made is kept: run the same again to go on."
                ) from error
            return None
        if isinstance(made, str):
            raise DapError(made)
        return made

    def _stop(self, actor: Any) -> None:
        import ray
        from ray.exceptions import RayError

        self._working.pop(actor, None)
        with suppress(RayError, ValueError):
            ray.kill(actor)

    def end(self) -> None:
        """Give the places of the actors back to the cluster."""
        for actor in (*self._working, *self._waiting.values()):
            self._stop(actor)
