"""The verbs of the command that judge: evaluate, report, rank, train-teacher, and what other verbs share with them."""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.cli.bars import Bars


def open_workshop(args: argparse.Namespace) -> Any:
    import torch

    from dap.workshop import Workshop

    if args.threads:
        torch.set_num_threads(args.threads)
    return Workshop(args.device, args.offline, args.cache)


def judges(args: argparse.Namespace, workshop: Any) -> Callable[[Any], Any]:
    """The judge of sets made from some data, loaded once for each."""
    from dap.backbones import device_of
    from dap.evaluation.judge import Judge
    from dap.evaluation.measures.embedding import embedding

    protocol, device = open_protocol(args), str(device_of(args.device))
    if args.reference:
        embedding("", protocol.size, args.reference)  # a mistake shows here, not after an hour

    @functools.cache
    def judge(data: Any) -> Any:
        def opened(split: Any, size: int) -> Any:
            return workshop.source(data.model_copy(update={"size": size}), split, "crop-bilinear")

        return Judge(
            opened,
            protocol,
            range(args.trials),
            embedding(data.path, protocol.size, args.reference, device),
            args.networks,
            device,
            teacher=args.teacher,
            labels=args.labels,
            offline=args.offline,
            on=args.on,
            every=float(os.environ.get("DAP_CHECKPOINT_SECONDS", 60)),
            neighbours=args.neighbours,
        )

    return lambda data: judge(data.model_copy(update={"size": protocol.size}))


def open_protocol(args: argparse.Namespace) -> Any:
    from dap.evaluation.training.protocol import load_protocol

    changes: dict[str, Any] = {"epochs": args.epochs} if args.epochs else {}
    changes |= {"network": args.network} if args.verb == "train-teacher" and args.network else {}
    changes |= assignments(args.changes, "--set", "FIELD")
    return load_protocol(args.protocol, **changes)


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


def write_page(paths: Sequence[Path], out: Path, title: str) -> Path:
    from dap.evaluation.report.page import write_report
    from dap.published import published

    return write_report(paths, out, title=title, published=published).resolve()


def finish(paths: Sequence[Path], out: Path, title: str, track: str | None) -> None:
    from dap.evaluation.report.expected import Claims
    from dap.evaluation.report.records import load
    from dap.evaluation.report.summary import summarise
    from dap.evaluation.report.terminal import terminal
    from dap.evaluation.report.wording import table
    from dap.published import published

    page, rows, claims = write_page(paths, out, title), summarise(load(paths)), Claims(published=published)
    if sys.stdout.isatty():
        print(terminal(rows, claims, shutil.get_terminal_size().columns))
    else:  # a file or a pipe gets the whole table, as Markdown
        print(table(rows, claims))
    print(f"\nReport: {page}")
    if track:
        from dap.evaluation.report.tracking import track as log

        print(f"Logged for {track}: {log(load(paths), track, page.parent).resolve()}")


def check_tracking(args: argparse.Namespace) -> None:
    if args.track:
        from dap.evaluation.report.tracking import require

        require(args.track)


def evaluate(args: argparse.Namespace) -> None:
    from dap.data.sets.distilled import DistilledSet
    from dap.recipe import Recipe

    check_tracking(args)
    workshop, bars = open_workshop(args), Bars()
    opened = [DistilledSet.from_folder(path, args.classes) for path in args.sets]
    judge_for = judges(args, workshop)
    for made in opened:
        recorded = (made.recipe or {}).get("data", {})
        if not (args.data or recorded):
            raise DapError(f"{made.path} does not say what real images to test on; give --data.")
        classes = recorded.get("classes") if recorded and not args.data else list(made.class_names)
        held = {"held_out": recorded.get("held_out", 0.0)} if args.data in (None, recorded.get("path")) else {}
        data = Recipe.parse({"data": {"path": args.data or recorded["path"], "classes": classes, **held}}).data
        judge_for(data)(made, on_trial=functools.partial(bars.trial, made.path.name), on_epoch=bars.epoch)
    finish(args.sets, args.out or args.sets[0], "Distilled sets judged", args.track)


def train_teacher(args: argparse.Namespace) -> None:
    from dap.backbones import device_of
    from dap.evaluation.training.classifier import save_classifier
    from dap.evaluation.training.trained import train_classifier
    from dap.recipe import Recipe

    if args.out.exists():
        raise DapError(f"{args.out} is there already; choose another --out.")
    protocol = open_protocol(args)
    data = Recipe.parse({"data": {"path": args.data, "classes": args.classes, "size": protocol.size}}).data
    workshop, kept = open_workshop(args), args.out.with_name(args.out.name + ".partial")
    classifier, trial = train_classifier(
        workshop.source(data, "train"),
        workshop.source(data, "test"),
        protocol,
        device=str(device_of(args.device)),
        progress=Bars().epoch,
        checkpoints=kept,
    )
    save_classifier(classifier, args.out)
    shutil.rmtree(kept, ignore_errors=True)
    print(f"{args.out}: {trial.network}, {trial.last:.1%} of {trial.n_test} test images, {trial.seconds:.0f} s")


def report(args: argparse.Namespace) -> None:
    check_tracking(args)
    finish(set_folders(args.sets), args.out, args.title, args.track)


def set_folders(folders: Sequence[Path]) -> list[Path]:
    found = [file.parent for path in folders for file in sorted(path.glob("**/classes.json"))]
    if not found:
        raise DapError(f"No distilled set in {', '.join(map(str, folders))} (looked for classes.json).")
    return found


def store_labels(args: argparse.Namespace, made: Any) -> None:
    from dap.backbones import device_of
    from dap.evaluation.judge import store_labels

    if not args.teacher:
        raise DapError("Stored labels need a teacher: --teacher FILE of dap train-teacher, or torchvision:NAME.")
    told, device = Bars().epoch, str(device_of(args.device))
    store_labels(
        made,
        open_protocol(args),
        args.out,
        teacher=args.teacher,
        device=device,
        offline=args.offline,
        progress=lambda done, total: told(0, done, total),
    )
    again = ["--protocol", args.protocol, *(["--epochs", str(args.epochs)] if args.epochs else [])]
    again += [part for item in args.changes for part in ("--set", item)]
    command = shlex.join(["dap", "evaluate", str(made.path), *again, "--labels", str(args.out)])
    print(f"Labels in {args.out}\nNext: {command}")


def rank(args: argparse.Namespace) -> None:
    from dap.evaluation.report.ranking import rank_sets

    found = set_folders(args.sets)
    protocols = {name: getattr(args, name) for name in ("hard", "own", "augmented", "plain")}
    for path, scores in rank_sets(found, network=args.network, full_hard=args.full, **protocols):
        told = [f"{name} {value:.3f}" for name, value in scores.shown.items()]
        print(f"{path}: {', '.join(told) or 'no score: its trials, or those of random images, are missing'}")
    print(f"Next: dap report {shlex.join(map(str, args.sets))} --out report")


def classify(args: argparse.Namespace) -> None:
    """Zero-shot: the backbone of each set, or the one named, as a classifier of real images and of the set's."""
    from dap.base.store import Store
    from dap.data.sets.distilled import DistilledSet
    from dap.recipe import BackboneChoice, Recipe
    from dap.verbs.classify import Levels, ZeroShot

    workshop, levels = open_workshop(args), Levels(args.times, tuple(args.keep), args.seed)
    folders = [f for path in args.sets for f in [c.parent for c in sorted(path.glob("**/classes.json"))] or [path]]
    opened = [DistilledSet.from_folder(path, args.classes) for path in folders]
    unfinished = opened[0].path / ".zeroshot"
    store, told = Store(args.cache or unfinished), Bars().work
    recipes = [made.recipe or {} for made in opened]
    for made, recipe in zip(opened, recipes, strict=True):
        if not (args.backbone or recipe.get("backbone")):
            raise DapError(f"{made.path} was made without a backbone; say which one should classify: --backbone NAME.")
        if not (args.data or recipe.get("data")):
            raise DapError(f"{made.path} does not say what real images belong to it; give --data.")
    for made, recipe in zip(opened, recipes, strict=True):
        choice = BackboneChoice(path=args.backbone) if args.backbone else BackboneChoice(**recipe["backbone"])
        backbone = workshop.backbone(choice)
        path, size = args.data or recipe["data"]["path"], backbone.card.size
        data = Recipe.parse({"data": {"path": path, "classes": list(made.class_names), "size": size}}).data
        judge = ZeroShot(backbone, str(workshop.weights_hash(backbone)), levels, args.reals, store, told)
        found = judge(made, workshop.source(data, "test"), opened)
        real = found["real"]
        print(
            f"{made.path}: {found['agreement']:.1%} of {len(found['images'])} images are what they are labelled to "
            f"{found['backbone']}, which is right on {real['accuracy']:.1%} of {real['images']} real test images"
        )
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"Next: dap report {shlex.join(map(str, args.sets))} --out report")
