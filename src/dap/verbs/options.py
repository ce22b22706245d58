"""What a verb can be told beside its own arguments: the machine it runs on, and how sets are judged.

The command line makes its flags of these classes, and Python users pass the same names as keywords.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from dap.base.errors import DapError
from dap.base.parsing import brief, check_options
from dap.base.permission import allow_code
from dap.base.watch import Watcher

if TYPE_CHECKING:
    from dap.data.real.stored.budget import Budget

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where work runs. Nothing here changes a recipe or is stored with a set.

    Attributes:
        device: "auto" takes a GPU where there is one; "cpu", "cuda", "cuda:1" name a device.
        offline: never ask the network; use the local cache alone.
        cache: folder in which several runs share real features and what methods make once.
        threads: how many CPU threads torch uses, and how many processes decode images; by default torch chooses. When a function
            of `dap` ends, torch uses as many as before.
        memory: GiB of memory that real images may take. More images lie in a file, or are decoded in every pass. The
            latents of a training of a backbone may take half of it. Workers of one command share it. Default: what is free, less
            a quarter.
        disk: GiB of disk that decoded images may take while a command runs. Workers of one command share it. Default: what is
            free, less a tenth.
        offload: weights leave the GPU while others work: each network (model), or each layer (sequential, slow). Default: none.
        vram: GiB of a GPU's memory that this process may take. What does not fit goes through the networks in smaller parts, and
            less is kept on the GPU. No effect on a CPU. Default: what is free.
        allow_code: run code of others that recipes, protocols, weights or sets name as file.py:Name or module:Name. Code that
            the command line itself names needs no permission.

    Raises:
        DapError: a value is of another type, or none of those listed. A `cache` may be text, which becomes a `Path`.
    """

    device: str = "auto"
    offline: bool = False
    cache: Path | None = None
    threads: int | None = None
    memory: float | None = None
    disk: float | None = None
    offload: Literal["none", "model", "sequential"] = "none"
    vram: float | None = None
    allow_code: bool = False

    def __post_init__(self) -> None:
        _as_path(self, "cache")
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How several processes share the work. The units of the work are the recipe's, so the result does not depend on this.

    Attributes:
        engine: how the work is shared: local (processes of this machine), shard (one of several processes that a launcher or you
            have started and that see one folder), or ray (a Ray cluster).
        workers: processes that share the work. On a machine with several GPUs each gets one of them. With Ray, the most actors
            that work at the same time; 0 takes all that the cluster has room for.
        shard: this process is shard I of N, as in 2/8. All processes get the same other flags. Without this flag, --engine shard
            asks torchrun, accelerate or SLURM.
        address: the address of the Ray cluster, such as auto or ray://head:10001.

    Raises:
        DapError: a value is of another type, or none of those listed.
    """

    engine: Literal["local", "shard", "ray"] = "local"
    workers: int | None = None
    shard: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        check_options(self, {"workers": 0})


def kind_of(engine: Engine) -> Literal["alone", "workers", "shard", "ray"]:
    """What an `Engine` asks for: this process alone, several processes of this machine, one shard of several, or Ray.

    Raises:
        DapError: the choices contradict each other.
    """
    if engine.engine != "ray" and engine.address:
        raise DapError(f"--address {engine.address} is that of a Ray cluster; add --engine ray.")
    if engine.engine == "ray":
        if engine.shard:
            raise DapError(
                "--shard has no use with --engine ray, which shares the units itself; leave out one of the two."
            )
        return "ray"
    if engine.shard or engine.engine == "shard":
        if (engine.workers or 1) > 1:
            raise DapError("A shard is one process; leave out --workers, or start several shards.")
        return "shard"
    return "workers" if (engine.workers or 1) > 1 else "alone"


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How distilled sets are judged.

    Attributes:
        protocol: the name of a shipped protocol, or a YAML file.
        networks: networks to train instead of the protocol's own: convnet3, resnetap10, resnet18, torchvision:NAME,
            timm:NAME, file.py:build.
        trials: trainings of each set, each with its own seed.
        epochs: training epochs instead of the protocol's own.
        changes: other values of the protocol's fields, such as {"size": 64}.
        teacher: the classifier whose logits are the soft labels: a file of `dap train-teacher`, or torchvision:NAME; or
            backbone:NAME, whose diffusion classifier labels the images; or a folder of `dap export --layout labels`.
        labels: folder of stored labels, as `dap export --layout fkd` writes them.
        on: "test" tests on the test images; "validation" tests on training images that were held out of distillation,
            to make choices on.
        reference: file of a classifier trained on the real data, for measures and predicted labels.
        neighbours: how many real images of a class are searched for near-copies; by default all of them, or 100,000 of all
            classes together.
        measures: measures of your own, each as file.py:Name; the report shows their numbers beside the built-in ones.

    Raises:
        DapError: a value is of another type or none of those listed, or a number is below 1.
    """

    protocol: str = "small-hard"
    networks: tuple[str, ...] = ()
    trials: int = 1
    epochs: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    labels: Path | None = None
    on: Literal["test", "validation"] = "test"
    reference: Path | None = None
    neighbours: int | None = None
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("labels", "reference"):
            _as_path(self, name)
        for name in ("networks", "measures"):
            if isinstance(one := getattr(self, name), str):
                object.__setattr__(self, name, (one,))
        for name in ("protocol", "teacher"):
            if isinstance(one := getattr(self, name), Path):
                object.__setattr__(self, name, str(one))
        check_options(self, {"trials": 1, "epochs": 1, "neighbours": 1})


def _as_path(options: Machine | Judging, name: str) -> None:
    """Make a path that is text a `Path`. Raises `DapError` if it is neither."""
    value = getattr(options, name)
    if isinstance(value, str):
        object.__setattr__(options, name, Path(value))
    elif value is not None and not isinstance(value, Path):
        raise DapError(f"{type(options).__name__} takes {name} as a path, not {brief(value)}.")


def images_budget(machine: Machine) -> Budget:
    """How much memory and disk real images may take. Their files lie in the folder of the cache, or in the user's own.

    Raises:
        DapError: a budget is not above 0.
    """
    from dap.data.real.identity import folder
    from dap.data.real.stored.budget import budget_of

    return budget_of(machine.cache or folder(), machine.memory, machine.disk)


KINDS = {"machine": Machine, "engine": Engine, "judging": Judging, "watcher": Watcher}
"""The arguments of verbs that take an object of a class of ours."""


@contextmanager
def _threads_kept() -> Iterator[None]:
    """A caller of a function computes with as many CPU threads afterwards as before."""
    before = torch.get_num_threads() if (torch := sys.modules.get("torch")) else None
    try:
        yield
    finally:
        if before is not None and torch is not None and torch.get_num_threads() != before:
            torch.set_num_threads(before)


def permitted(verb: Callable[P, R]) -> Callable[P, R]:
    """The same function, in which code that files name may run if its argument `machine` allows it.

    Its arguments `machine`, `engine`, `judging`, `watcher` and `out` are checked to be the objects that they should be.
    """
    signature = inspect.signature(verb)

    @functools.wraps(verb)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        for name, kind in KINDS.items():
            if (value := given.get(name)) is not None and not isinstance(value, kind):
                raise DapError(f"The argument {name} takes a dap.{kind.__name__}(...), not {brief(value)}.")
        if (out := given.get("out")) is not None and not isinstance(out, str | Path):
            raise DapError(f"The argument out takes the path of a folder, not {brief(out)}.")
        machine = given.get("machine")
        with allow_code(isinstance(machine, Machine) and machine.allow_code), _threads_kept():
            return verb(*args, **kwargs)

    return inside
