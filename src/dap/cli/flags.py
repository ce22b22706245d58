"""The types of the flags that several verbs share.

A command is a function whose annotations say what its flags are; the library cyclopts reads them. The classes here add the
spelling of a flag to the classes that the functions behind the verbs take, so that every name, default and sentence of help
stands in one place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.verbs.options import Judging, Machine

JUDGING = Group("Judging", sort_key=20)
MACHINE = Group("Machine (decides no byte of a set)", sort_key=30)
OUTPUT = Group("Output", sort_key=40)


def positive(hint: Any, tokens: Sequence[Any]) -> int:
    """The whole number of at least 1 that a flag was given.

    Raises:
        ValueError: the text is no such number.
    """
    del hint
    text = tokens[-1].value
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"a whole number of at least 1 is needed, not {text!r}")
    return int(text)


def words(hint: Any, tokens: Sequence[Any]) -> tuple[str, ...]:
    """The parts of a list that was written with commas."""
    del hint
    return tuple(tokens[-1].value.split(","))


def numbers(hint: Any, tokens: Sequence[Any]) -> tuple[int, ...]:
    """The whole numbers of at least 1 in a list that was written with commas.

    Raises:
        ValueError: a part of the list is no such number.
    """
    del hint
    parts = tokens[-1].value.split(",")
    for part in parts:
        if not part.isdigit() or int(part) < 1:
            raise ValueError(
                f"whole numbers of at least 1 with commas between them are needed, not {tokens[-1].value!r}"
            )
    return tuple(int(part) for part in parts)


def assignments(items: Sequence[str], flag: str, what: str) -> dict[str, Any]:
    """The values of a flag that is given as NAME=VALUE once or several times, read as YAML.

    Args:
        items: the texts that were given.
        flag: the flag, for the message.
        what: what stands before the equals sign, for the message.

    Raises:
        DapError: a text has no value, or the value is not valid YAML.
    """
    import yaml

    found = {}
    for item in items:
        name, _, value = item.partition("=")
        if not value:
            raise DapError(
                f"{flag} takes {what}=VALUE, such as {'size=64' if flag == '--set' else 'scale=0.1'}, not {item!r}."
            )
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise DapError(f"{flag} {item}: {value!r} is not valid YAML; are all brackets closed?") from error
    return found


Positive = Annotated[int, Parameter(converter=positive, metavar="N")]
MaybePositive = Annotated[int | None, Parameter(converter=positive, metavar="N")]
Words = Annotated[tuple[str, ...], Parameter(converter=words, metavar="NAME,…", allow_repeating=True)]
Numbers = Annotated[tuple[int, ...], Parameter(converter=numbers, metavar="N,…", allow_repeating=True)]
Floats = Annotated[list[float] | None, Parameter(consume_multiple=(1, None), metavar="X …")]
Changes = Annotated[
    list[str],
    Parameter(
        name="--set",
        metavar="FIELD=VALUE",
        help="Another value of a field of the protocol, as YAML: size=64, 'mean=[0.5]'. May be repeated.",
    ),
]
Classes = Annotated[list[str] | None, Parameter(consume_multiple=(1, None), metavar="NAME …")]
Sets = Annotated[list[Path], Parameter(metavar="SET …")]
Dtype = Literal["float32", "bfloat16", "float16"]
Track = Annotated[
    Literal["tensorboard", "wandb"] | None,
    Parameter(
        group=OUTPUT,
        help="Also log trials, measures and images for this tool. wandb sends them to its server unless "
        "WANDB_MODE=offline is set.",
    ),
]


@Parameter(name="*", group=MACHINE)
@dataclass(frozen=True, kw_only=True)
class Place(Machine):
    """Where a verb runs that shares nothing with other runs: the device, and whether the network may be asked."""

    device: str = "auto"
    offline: bool = False
    cache: Annotated[Path | None, Parameter(parse=False)] = None
    threads: Annotated[int | None, Parameter(parse=False)] = None


@Parameter(name="*", group=MACHINE)
@dataclass(frozen=True, kw_only=True)
class MachineFlags(Machine):
    """The flags of `Machine`."""

    threads: MaybePositive = None


@Parameter(name="*", group=JUDGING)
@dataclass(frozen=True, kw_only=True)
class JudgingFlags(Judging):
    """The flags of `Judging`. `changes` comes as texts and is read by `judging`."""

    networks: Words = ()
    trials: Annotated[int, Parameter(name=("--trials", "--seeds"), converter=positive, metavar="N")] = 1
    epochs: MaybePositive = None
    changes: Changes = field(default_factory=list)  # pyright: ignore[reportIncompatibleVariableOverride]
    labels: Annotated[Path | None, Parameter(metavar="DIR")] = None
    reference: Annotated[Path | None, Parameter(metavar="FILE")] = None
    neighbours: MaybePositive = None


@Parameter(name="*", group=JUDGING)
@dataclass(frozen=True, kw_only=True)
class QuickJudgingFlags(JudgingFlags):
    """The flags of `Judging` with the protocol of the demo."""

    protocol: str = "quick-hard"


def judging(flags: JudgingFlags) -> Judging:
    """The `Judging` that these flags say.

    Raises:
        DapError: a text of `--set` is not FIELD=VALUE.
    """
    given = {name: getattr(flags, name) for name in Judging.__dataclass_fields__}
    return Judging(**{**given, "changes": assignments(given["changes"], "--set", "FIELD")})


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """What a verb writes to the terminal.

    Attributes:
        json: write one JSON object to standard output and nothing else.
        quiet: write no progress and no text; only errors are shown.
        debug: show the full trace of an error.
    """

    json: bool = False
    quiet: bool = False
    debug: bool = False

    def watcher(self) -> Watcher:
        """What draws the progress of a long verb on standard error."""
        from dap.cli.bars import watcher

        return Watcher() if self.quiet else watcher()


@dataclass(frozen=True)
class Told:
    """What a verb has to say when it is done.

    Attributes:
        text: for people.
        values: for `--json`; paths may stand in it.
        status: the exit status.
    """

    text: str
    values: Mapping[str, Any]
    status: int = 0


def shell(command: Sequence[str]) -> str:
    """A command line as it is typed into a shell."""
    import shlex

    return shlex.join(command)


def stdout_width(text: Callable[[int], str], other: Callable[[], str]) -> str:
    """A table as wide as the terminal, or its other form where standard output is a file or a pipe."""
    import shutil
    import sys

    if sys.stdout.isatty():
        return text(shutil.get_terminal_size().columns)
    return other()


def plain(value: Any) -> Any:
    """A value of `Told.values` as JSON takes it: paths become texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
