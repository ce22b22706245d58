"""The types of the flags that several verbs share.

A command is a function. Its annotations describe its flags, and the library cyclopts reads the annotations. The
functions behind the verbs take classes such as `Machine` and `Judging`. The shared flags are made from these classes,
so that every name, default and sentence of help stands in one place.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args, get_type_hints

from cyclopts import Group, Parameter

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.verbs.options import Engine, Judging, Machine

OTHERS = Group("Other flags", sort_key=90)
JUDGING = Group("Judging", sort_key=20)
MACHINE = Group("Machine (no part of the recipe)", sort_key=30)
ENGINE = Group("Several processes (no part of the recipe)", sort_key=35)
OUTPUT = Group("Output", sort_key=40)


def positive(hint: Any, tokens: Sequence[Any]) -> int:
    """The value of a flag that takes a whole number of at least 1.

    Raises:
        ValueError: the text is not a whole number of at least 1.
    """
    del hint
    text = tokens[-1].value
    if not _is_positive(text):
        large = " that fits 64 bits" if text.isdecimal() and len(text) > 18 else ""
        raise ValueError(f"a whole number of at least 1{large} is needed, not {text!r}")
    return int(text)


def _is_positive(text: str) -> bool:
    """Whether a text is a whole number of at least 1 that fits 64 bits; ² is a digit of no number."""
    return text.isascii() and text.isdigit() and len(text) < 19 and int(text) >= 1


def seed_of_run(hint: Any, tokens: Sequence[Any]) -> int:
    """The value of a flag that takes a seed.

    Raises:
        ValueError: the text is not a whole number from 0 to 2**63 - 1, the largest that torch's generators take.
    """
    del hint
    text = tokens[-1].value
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1, not {text!r}")
    return int(text)


def words(hint: Any, tokens: Sequence[Any]) -> tuple[str, ...]:
    """The parts of a text that is split at its commas."""
    del hint
    return tuple(tokens[-1].value.split(","))


def numbers(hint: Any, tokens: Sequence[Any]) -> tuple[int, ...]:
    """The whole numbers of at least 1 in a text that is split at its commas.

    Raises:
        ValueError: a part of the text is not a whole number of at least 1.
    """
    del hint
    parts = tokens[-1].value.split(",")
    for part in parts:
        if not _is_positive(part):
            raise ValueError(
                f"whole numbers of at least 1 with commas between them are needed, not {tokens[-1].value!r}"
            )
    return tuple(int(part) for part in parts)


def assignments(items: Sequence[str], flag: str, what: str) -> dict[str, Any]:
    """The values of a flag that is given as NAME=VALUE once or several times, read as YAML.

    Args:
        items: the texts that were given.
        flag: the flag, for the message.
        what: the word for the part before the equals sign, for the message.

    Raises:
        DapError: a text has no value, or the value is not valid YAML.
    """
    from dap.base.parsing import Damaged, brief, parse_yaml, shown

    found = {}
    for item in items:
        name, _, value = item.partition("=")
        if not (name and value):
            like = "size=64" if flag == "--set" else "scale=0.1"
            raise DapError(f"{flag} takes {what}=VALUE, such as {like}, not {brief(item)}.")
        try:
            found[name] = parse_yaml(value, f"{flag} {shown(name)[:80]}")
        except Damaged as error:
            more = " Are all brackets closed?" if "not YAML" in str(error) else ""
            raise DapError(f"{flag} {shown(name)[:80]}: {brief(value)} is not valid YAML; {error}{more}") from error
    return found


Positive = Annotated[int, Parameter(converter=positive, metavar="N")]
MaybePositive = Annotated[int | None, Parameter(converter=positive, metavar="N")]
Seed = Annotated[int, Parameter(converter=seed_of_run, metavar="N")]
Words = Annotated[tuple[str, ...], Parameter(converter=words, metavar="NAME,…", show_default=False)]
Numbers = Annotated[tuple[int, ...], Parameter(converter=numbers, metavar="N,…", show_default=False)]
Floats = Annotated[list[float] | None, Parameter(consume_multiple=(1, None), metavar="X …")]
Classes = Annotated[list[str] | None, Parameter(consume_multiple=(1, None), metavar="NAME …")]
Places = Annotated[str | None, Parameter(metavar="SPLIT=FOLDER,…")]
Sets = Annotated[list[Path], Parameter(metavar="SET …")]
Dtype = Literal["float32", "bfloat16", "float16"]
CHANGES = "Another value of a field of the protocol, as YAML: size=64, 'mean=[0.5]'. May be repeated."
MEASURES = "A measure of your own as file.py:Name, whose number the report shows beside its own. May be repeated."
Changes = Annotated[list[str] | None, Parameter(name="--set", metavar="FIELD=VALUE", help=CHANGES)]
DryRun = Annotated[
    bool,
    Parameter(
        name="--dry-run",
        help="Make nothing and fetch nothing. Say how much there is to do, and how much time, memory and disk it takes, by "
        "a short time test on this machine.",
    ),
]
Track = Annotated[
    Literal["tensorboard", "wandb"] | None,
    Parameter(
        group=OUTPUT,
        help="Also log trials, measures and images for this tool. wandb sends them to its server unless "
        "WANDB_MODE=offline is set.",
    ),
]

SPELLED = {"changes": "--set", "measures": "--measure", "trials": ("--trials", "--seeds")}
"""The flags of those fields whose flag is not simply the field's name."""

METAVARS = {"labels": "DIR", "reference": "FILE", "cache": "DIR", "shard": "I/N"}
METAVARS |= dict.fromkeys(("memory", "disk", "vram"), "GIB")


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


def sentences(doc: str) -> dict[str, str]:
    """The text that a docstring's section "Attributes" has for each attribute, as one or several sentences."""
    section = inspect.cleandoc(doc).partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in found}
    return {name: text[0].upper() + text[1:] for name, text in texts.items()}


def _kind(name: str, hint: Any) -> tuple[Any, dict[str, Any]]:
    """The type of a field's flag, and further arguments of cyclopts' `Parameter` for the flag."""
    if name == "changes":
        return list[str], {"metavar": "FIELD=VALUE", "help": CHANGES}
    if name == "measures":
        return list[str], {"metavar": "FILE:NAME", "help": MEASURES}
    if hint in (int, int | None):
        return int, {"converter": positive, "metavar": "N"}
    if hint == tuple[str, ...]:
        return hint, {"converter": words, "metavar": "NAME,…"}
    about = {"metavar": METAVARS[name]} if name in METAVARS else {}
    return next((arm for arm in get_args(hint) if isinstance(arm, type)), hint), about


def flags_of(made: type, group: Group, without: Collection[str] = (), **defaults: Any) -> Any:
    """A flag for every field of a dataclass. The help of a flag is the sentence that the class's docstring has for the field.

    The command gets one dictionary, by the names of the fields. It holds only the flags that the user gave.

    Args:
        made: the dataclass, such as `Machine`.
        group: the heading of the flags in the help.
        without: the fields that get no flag.
        defaults: values that the help states in place of the defaults of the class.
    """
    hints, says, flags = get_type_hints(made), sentences(made.__doc__ or ""), {}
    for one in fields(made):
        if one.name in without:
            continue
        hint, about = _kind(one.name, hints[one.name])
        default = defaults.get(one.name, one.default)
        known = isinstance(default, (str, int)) and not isinstance(default, bool)
        about.setdefault("help", says[one.name] + (f" Default: {default}." if known else ""))
        about["name"] = SPELLED.get(one.name, f"--{one.name.replace('_', '-')}")
        flags[one.name] = Annotated[hint, Parameter(group=group, **about)]
    return parameters(f"{made.__name__}Flags", flags)


def parameters(title: str, flags: Mapping[str, Any]) -> Any:
    """Flags that a command gets as one dictionary."""
    found = TypedDict(title, dict(flags), total=False)  # noqa: UP013  # pyright: ignore
    # cyclopts would parse the source of this module for the help of each flag, but the flags hold their help already. Parsing
    # takes a tenth of the time that a verb's help may take. A class of an unknown module has no source to parse.
    found.__module__ = "dap.no_source"
    return Annotated[found, Parameter(name="*")]


if TYPE_CHECKING:
    MachineFlags = PlaceFlags = JudgingFlags = QuickJudgingFlags = OutputFlags = EngineFlags = dict[str, Any]
else:
    MachineFlags = flags_of(Machine, MACHINE)
    PlaceFlags = flags_of(
        Machine, MACHINE, without=("cache", "threads", "memory", "disk", "vram", "offload", "allow_code")
    )
    EngineFlags = flags_of(Engine, ENGINE)
    JudgingFlags = flags_of(Judging, JUDGING)
    QuickJudgingFlags = flags_of(Judging, JUDGING, protocol="quick-hard")
    OutputFlags = flags_of(Output, OUTPUT)


def machine_of(given: Mapping[str, Any] | None) -> Machine:
    """The `Machine` that the flags describe."""
    return Machine(**(given or {}))


def engine_of(given: Mapping[str, Any] | None) -> Engine:
    """The `Engine` that the flags describe."""
    return Engine(**(given or {}))


def judging_of(given: Mapping[str, Any] | None, **defaults: Any) -> Judging:
    """The `Judging` that the flags describe.

    Raises:
        DapError: a text of `--set` is not FIELD=VALUE.
    """
    chosen = {**defaults, **(given or {})}
    changes = assignments(chosen.get("changes") or [], "--set", "FIELD")
    return Judging(**{**chosen, "changes": changes, "measures": tuple(chosen.get("measures") or ())})


def output_of(given: Mapping[str, Any] | None) -> Output:
    """The `Output` that the flags describe."""
    return Output(**(given or {}))


def watcher_of(given: Mapping[str, Any] | None, **less: str) -> Watcher:
    """The watcher that draws the progress of a long verb on standard error. Under `--quiet` the watcher draws nothing.

    Args:
        given: the flags of the output.
        less: how work that takes more than an hour is made less, by what the watcher is told of; see `hour.LESS`.
    """
    if output_of(given).quiet:
        return Watcher()
    from dap.cli.bars import watcher
    from dap.verbs.planning.hour import Hourglass

    return Hourglass(watcher(), less)


@dataclass(frozen=True)
class Told:
    """The result of a verb, as the command writes it.

    Attributes:
        text: the text for people.
        values: the values for `--json`. Paths may be among them.
        status: the exit status.
    """

    text: str
    values: Mapping[str, Any]
    status: int = 0


def plain(value: Any) -> Any:
    """A value of `Told.values` as JSON takes it: paths become texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
