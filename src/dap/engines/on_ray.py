"""The Ray engine: actors of a cluster make the units of a set, or do the cells and trainings of a grid.

For a set each actor loads the backbone once and gives back images, and this process alone writes the set. So the cluster needs
no shared file system for it. The cells of a grid and the trainings on sets meet in their folder, which all nodes must see. There
each actor runs a worker process as `dap.base.workers` does on one machine. Ray itself starts an actor again whose process or
node has died, and tries its pieces of work again.
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
from dap.base.workers import run_workers
from dap.methods.base import Made, Unit

RESTARTS = 3
"""How often Ray starts an actor again that has died, and how often a unit whose actor was lost for good goes to another one; see
`workers.AGAIN` for the number."""

AHEAD = 2
"""How many units an actor is given at a time. While it sends one, it makes the next."""

LOOK = 5.0
"""Seconds between two looks at what the cluster has room for. A node that joins is used after this time."""

Build = Callable[..., Callable[[Any], Any]]
"""A function of a module that loads everything that a recipe names, and returns what does a piece of work, such as a unit."""


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
    crew = _Crew(cluster, build, given, watcher, ahead=AHEAD)
    try:
        yield from crew.run(list(units), lambda unit: f"class {unit.label}, slots from {unit.slots[0]}")
    finally:
        crew.end()
        ray.shutdown()


def run_workers_on(
    cluster: Cluster,
    arguments: Sequence[str],
    pieces: int,
    watcher: Watcher,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Run the command line `dap` with these arguments in actors of a cluster, until the work is done.

    There are as many actors as the cluster has room for, also in nodes that join later. A worker ends well only when all
    pieces are done, so the first one that does ends the run.

    Args:
        cluster: the cluster. All its nodes must see the folders that the arguments name.
        arguments: the arguments of a command that shares its work by `claims.Claims`.
        pieces: how many pieces of work there are. There are never more actors.
        watcher: is told how many actors work, and of those that have died.
        meanwhile: is called every few seconds while the actors work.

    Raises:
        DapError: the cluster cannot be reached, a worker failed by a mistake, or workers have died too often. The work
            that was done is kept.
    """
    import ray

    if not pieces:
        return
    _connect(cluster)
    crew = _Crew(cluster, _worker, (tuple(arguments), cluster.threads), watcher, ahead=1)
    try:
        next(crew.run(list(range(pieces)), lambda number: f"worker {number}", meanwhile))
    finally:
        crew.end()
        ray.shutdown()


def _worker(arguments: Sequence[str], threads: int) -> Callable[[int], bool]:
    """What runs a worker process in an actor. It returns when all pieces of the work are done."""

    def run(number: int) -> bool:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        run_workers(arguments, 1, spread=False, tell=lambda line: None)
        return True

    return run


class Actor:
    """Does pieces of work. It loads everything when it is asked for the first piece."""

    def __init__(self, build: Build, given: Sequence[Any], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._build, self._given = build, given
        self._make: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Returns as soon as the actor has its place in the cluster."""

    def make(self, piece: Any) -> Any:
        """What comes of a piece of work; images are on the CPU. Or why a unit is not finite, or the message of a user's mistake:
        as an error, Ray would wrap it."""
        try:
            if self._make is None:
                self._make = self._build(*self._given)
            made = self._make(piece)
        except NotFinite as error:
            return error
        except DapError as error:
            return str(error)
        return replace(made, images=made.images.detach().cpu(), latents=None) if isinstance(made, Made) else made


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
    """The actors of a run. Their number follows what the cluster has room for.

    Args:
        cluster, build, given, watcher: see `stream`.
        ahead: how many pieces an actor is given at a time.
    """

    def __init__(self, cluster: Cluster, build: Build, given: Sequence[Any], watcher: Watcher, *, ahead: int) -> None:
        import ray

        self._ahead = ahead
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
        """How many pieces each actor has."""
        self._failed: dict[Any, int] = {}

    def run(
        self, todo: list[Any], called: Callable[[Any], str], meanwhile: Callable[[], object] = lambda: None
    ) -> Iterator[tuple[Any, Any]]:
        """Every piece of work with what came of it, in the order in which they are done.

        Args:
            todo: the pieces.
            called: the name of a piece, for messages.
            meanwhile: is called every few seconds.
        """
        import ray

        asked: dict[Any, tuple[Any, Any]] = {}
        while todo or asked:
            self._grow(len(todo))
            for actor, has in list(self._working.items()):
                for piece in todo[: self._ahead - has]:
                    asked[actor.make.remote(piece)] = piece, actor
                    self._working[actor] += 1
                del todo[: max(0, self._ahead - has)]
                if not self._working[actor]:  # its place may be wanted for an actor that is started again
                    self._stop(actor)
            done, _ = ray.wait([*asked, *self._waiting], num_returns=1, timeout=LOOK)
            meanwhile()
            for result in done:
                if result in self._waiting:
                    self._join(result)
                    continue
                piece, actor = asked.pop(result)
                if actor in self._working:
                    self._working[actor] -= 1
                made = self._result(result, piece, actor, called)
                if made is None:
                    todo.insert(0, piece)
                else:
                    yield piece, made

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

    def _result(self, result: Any, piece: Any, actor: Any, called: Callable[[Any], str]) -> Any:
        """What came of a piece; None if its actor was lost, so that another one must do it.

        Raises:
            DapError: the piece cannot be done, or its actors have died too often.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            made: Any = ray.get(result)
        except RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except RayError as error:
            if actor in self._working:
                self._watcher.note(f"Ray: an actor was lost ({type(error).__name__}); others take its work.")
            self._stop(actor)
            self._failed[piece] = self._failed.get(piece, 0) + 1
            if self._failed[piece] > RESTARTS:
                name = called(piece)
                raise DapError(
                    f"{name[:1].upper()}{name[1:]}: {self._failed[piece]} actors of Ray were lost over this work "
                    f"({first_line(error)}). What was made is kept: run the same again to go on."
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
