"""The verbs of the command that judge: from flags to the functions of `dap.verbs`, and what they found on the terminal."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from dap.base.errors import DapError
from dap.cli.bars import Bars
from dap.verbs.options import Judging, Machine


def machine(args: argparse.Namespace) -> Machine:
    return Machine(
        device=args.device,
        offline=args.offline,
        cache=getattr(args, "cache", None),
        threads=getattr(args, "threads", None),
    )


def judging(args: argparse.Namespace) -> Judging:
    return Judging(
        protocol=args.protocol,
        networks=tuple(args.networks),
        trials=args.trials,
        epochs=args.epochs,
        changes=changes(args),
        teacher=args.teacher,
        labels=args.labels,
        on=args.on,
        reference=args.reference,
        neighbours=args.neighbours,
    )


def changes(args: argparse.Namespace) -> dict[str, Any]:
    return assignments(args.changes, "--set", "FIELD")


def assignments(items: Sequence[str], flag: str, what: str) -> dict[str, Any]:
    """The values of a flag that is given as NAME=VALUE, as YAML, once or several times."""
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


def show(results: Any, track: str | None) -> None:
    """The table, where the page is, and the log that was asked for."""
    from dap.verbs.report import log_for

    if sys.stdout.isatty():
        print(results.table.terminal(shutil.get_terminal_size().columns))
    else:  # a file or a pipe gets the whole table, as Markdown
        print(results.table.markdown())
    print(f"\nReport: {results.page}")
    if track:
        print(f"Logged for {track}: {log_for(track, results)}")


def check_tracking(args: argparse.Namespace) -> None:
    from dap.verbs.report import check_tracking

    check_tracking(args.track)


def evaluate(args: argparse.Namespace) -> None:
    from dap.verbs.evaluate import evaluate

    check_tracking(args)
    options = {"data": args.data, "classes": args.classes, "out": args.out or args.sets[0]}
    show(
        evaluate(args.sets, **options, judging=judging(args), machine=machine(args), watcher=Bars()),
        args.track,
    )


def train_teacher(args: argparse.Namespace) -> None:
    from dap.verbs.train_teacher import train_teacher

    names = ("classes", "network", "protocol", "epochs")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    trial = train_teacher(args.data, args.out, **options, changes=changes(args), machine=machine(args), watcher=Bars())
    print(f"{args.out}: {trial.network}, {trial.last:.1%} of {trial.n_test} test images, {trial.seconds:.0f} s")


def report(args: argparse.Namespace) -> None:
    from dap.verbs.report import Results, found_sets, report

    check_tracking(args)
    found = found_sets(args.sets)
    show(Results(tuple(found), report(args.sets, args.out, title=args.title)), args.track)


def store_labels(args: argparse.Namespace, made: Any) -> None:
    from dap.verbs.labels import store_labels

    options: dict[str, Any] = {name: getattr(args, name) for name in ("teacher", "protocol", "epochs")}
    store_labels(made, args.out, **options, changes=changes(args), machine=machine(args), watcher=Bars())
    again = ["--protocol", args.protocol, *(["--epochs", str(args.epochs)] if args.epochs else [])]
    again += [part for item in args.changes for part in ("--set", item)]
    command = shlex.join(["dap", "evaluate", str(made.path), *again, "--labels", str(args.out)])
    print(f"Labels in {args.out}\nNext: {command}")


def rank(args: argparse.Namespace) -> None:
    from dap.verbs.rank import rank

    names = ("network", "hard", "own", "augmented", "plain", "full")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    for path, scores in rank(args.sets, **options).items():
        told = [f"{name} {value:.3f}" for name, value in scores.shown.items()]
        print(f"{path}: {', '.join(told) or 'no score: its trials, or those of random images, are missing'}")
    print(f"Next: dap report {shlex.join(map(str, args.sets))} --out report")


def classify(args: argparse.Namespace) -> None:
    """Zero-shot: the backbone of each set, or the one named, as a classifier of real images and of the set's."""
    from dap.verbs.classify import Levels, classify

    options: dict[str, Any] = {name: getattr(args, name) for name in ("backbone", "data", "classes", "reals")}
    levels = Levels(args.times, tuple(args.keep), args.seed)
    for path, found in classify(args.sets, **options, levels=levels, machine=machine(args), watcher=Bars()).items():
        real = found["real"]
        print(
            f"{path}: {found['agreement']:.1%} of {len(found['images'])} images are what they are labelled to "
            f"{found['backbone']}, which is right on {real['accuracy']:.1%} of {real['images']} real test images"
        )
    print(f"Next: dap report {shlex.join(map(str, args.sets))} --out report")
