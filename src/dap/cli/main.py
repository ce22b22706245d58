"""The command `dap`: a few lines a verb over a function of the same name."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dap.base.errors import DapError
from dap.cli import judging
from dap.cli.bars import Bars, Lines, watching
from dap.cli.flags import build_parser
from dap.cli.recipe_flags import flag_of, recipe_fields


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 a user's mistake, 130 interrupted."""
    args = build_parser(VERBS).parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="dap: %(message)s", level=logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return args.run(args) or 0
    except DapError as error:
        return _fail(args, str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's, of a GPU
            raise
        return _fail(args, "Out of memory. What was made is kept; use fewer --reals or a smaller --block.")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(
            args, f"{where}{error.strerror or error}. What was made is kept; mend this and run the same again."
        )
    except KeyboardInterrupt:
        print("\ndap: interrupted. What was made is kept; run the same command to go on.", file=sys.stderr)
        return 130


def _fail(args: argparse.Namespace, message: str) -> int:
    if args.debug:
        raise
    for bar in Bars.open:
        bar.close()
    print(f"dap: error: {message}", file=sys.stderr)
    return 1


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """The YAML file's values under the flags given."""
    from dap.recipe import Recipe

    values = Recipe.load(args.recipe) if args.recipe else {}
    for name in (name for name, _ in recipe_fields() if name != "options"):
        given = getattr(args, name, None)
        if given is not None:
            section, _, leaf = name.rpartition(".")
            inside = values.setdefault(section, {}) if section else values
            if not isinstance(inside, dict):
                raise DapError(f"{section!r} in {args.recipe} should hold a mapping, not {inside!r}.")
            inside[leaf] = given
    if args.option and args.verb != "compare":
        values["options"] = {**(values.get("options") or {}), **judging.assignments(args.option, "--option", "NAME")}
    return values


def _command() -> str:
    return shlex.join(["dap", *sys.argv[1:]])


def _distill(args: argparse.Namespace) -> None:
    from dap.recipe import Recipe
    from dap.verbs.distill import distill

    recipe, bars = Recipe.parse(_recipe_values(args), str(args.recipe or "the recipe")), Bars()
    made = distill(
        recipe,
        args.out,
        workshop=judging.open_workshop(args),
        watcher=watching(bars),
        command=_command(),
    )
    page = judging.write_page([args.out], args.out, f"{args.out.name}: {recipe.method}")
    print(
        f"{len(made.records)} images in {made.path}\nReport: {page}\nNext: dap evaluate {shlex.quote(str(made.path))}"
    )


def _grid(args: argparse.Namespace, cells: Any, title: str) -> None:
    from dap.base.workers import end_with_parent, run_workers
    from dap.verbs.compare import check, folders, sweep

    judging.check_tracking(args)
    if getattr(args, "worker", False):
        end_with_parent()
    workshop = judging.open_workshop(args)
    bars = Lines() if getattr(args, "worker", False) else Bars()
    judge_for, failed, drawn = judging.judges(args, workshop), None, getattr(args, "subsample", [])
    check(cells, workshop, judge_for, args.out)
    try:
        if getattr(args, "workers", 1) > 1:
            again = [*args.argv, "--workers", "1", "--worker"]
            run_workers(again, args.workers, spread=args.device in ("auto", "cuda"))
        else:
            said = {"watcher": watching(bars), "on_trial": bars.trial, "on_epoch": bars.epoch}
            sweep(cells, args.out, workshop, judge_for, command=_command(), subsample=drawn, **said)
    except DapError as error:  # of some cells: the report on the others is still written
        failed = error
    made = [path for path in folders(cells, args.out, drawn) if (path / "classes.json").is_file()]
    if made and not getattr(args, "worker", False):
        judging.finish(made, args.out, title, args.track)
    if failed is not None:
        raise failed


def _demo(args: argparse.Namespace) -> None:
    from dap.verbs.compare import grid

    args.out = args.out or Path(f"runs/demo-{args.backbone}")
    base = {"backbone": {"path": {"dit": "starter", "unet": "starter-unet"}[args.backbone]}}
    cells = list(grid(base, {"method": ["random", "vanilla", "dap", "dap-slots"]}, args.sets))
    name = {"dit": "DiT", "unet": "Stable Diffusion's U-Net"}[args.backbone]
    _grid(args, cells, f"Fashion-MNIST at 10 images per class: real, vanilla, DAP ({name})")


def _sweep(args: argparse.Namespace) -> None:
    from dap.base.registry import suggest
    from dap.verbs.compare import grid

    fields = {flag_of(name): name for name, _ in recipe_fields()}
    vary = {}
    for item in args.vary:
        flag, _, values = item.partition("=")
        if flag not in fields or not values:
            raise DapError(f"--vary takes FLAG=V1,V2,…, not {item!r}. {suggest(flag, fields)}")
        vary[fields[flag]] = values.split(",")
    cells = list(grid(_recipe_values(args), vary, args.sets))
    _grid(args, cells, f"Sweep over {', '.join(item.partition('=')[0] for item in args.vary) or 'seeds'}")


def _compare(args: argparse.Namespace) -> None:
    from dap.verbs.compare import comparison

    options = judging.assignments(args.option, "--option", "METHOD.NAME")
    _check_wanted(args)
    cells = comparison(_recipe_values(args), args.methods, args.ipcs, args.sets, options)
    most = max(recipe.ipc for _, recipe in cells)
    for n in (n for n in args.subsample if n >= most):
        raise DapError(
            f"--subsample {n}: no set has more than {n} images a class to draw from, the largest has {most}."
        )
    _grid(args, cells, "Methods compared")


def _check_wanted(args: argparse.Namespace) -> None:
    """Whether somebody wants what was given by a flag; a recipe file may say more than the methods take."""
    from dap.methods import find

    methods = {name: find(name.partition("@")[0]) for name in args.methods}
    for name, wanted in (
        ("guidance", [made.guidance is not None for made in methods.values()]),
        ("classifier", ["classifier" in made.needs for made in methods.values()]),
        ("captions", ["captions" in made.needs for made in methods.values()]),
    ):
        fields = [f for f, _ in recipe_fields() if f.partition(".")[0] == name and getattr(args, f, None) is not None]
        if fields and not any(wanted):
            raise DapError(
                f"Of {', '.join(methods)} none takes --{flag_of(fields[0])}; a method's own options are given as --option "
                "METHOD.NAME=VALUE."
            )


def _methods(args: argparse.Namespace) -> None:
    from dap.methods.catalogue import one, table

    print(one(args.name) if args.name else table())


def _caption(args: argparse.Namespace) -> None:
    from dap.data.real.sources import open_source
    from dap.verbs.caption import MODEL, SIZE, Captioner, caption

    source = open_source(args.data, "train", size=SIZE, classes=args.classes)
    name, bars = args.model or MODEL, Bars()
    say = Captioner(name, device=args.device, offline=args.offline)
    options = {"ask": args.ask or say.ask, "per_class": args.per_class, "batch": args.batch}
    made = caption(source, args.out, say, name, tell=bars.work, **options)
    print(
        f"{made} captions added to {args.out}\nNext: dap distill --method vlcp --captions {shlex.quote(str(args.out))} ..."
    )


def _convert(args: argparse.Namespace) -> None:
    from dap.backbones.convert import convert

    made = convert(
        **{name: value for name, value in vars(args).items() if name not in ("run", "verb", "debug", "argv")}
    )
    print(f"Pipeline in {made}\nNext: dap distill --backbone {shlex.quote(str(made))} --out runs/first")


def _import(args: argparse.Namespace) -> None:
    from dap.data.sets.imports import import_set

    names = ("source", "out", "layout", "ipc", "pick", "seed", "labels", "mean", "std", "licence")
    given = {name: getattr(args, name) for name in names}
    made = import_set(class_names=args.classes, progress=Bars().images(args.out.name), **given)
    print("\n".join(made.noted("import.json")["notes"]))
    print(f"{len(made.records)} images in {made.path}\nNext: dap evaluate {shlex.quote(str(made.path))} --data FOLDER")


def _export(args: argparse.Namespace) -> None:
    from dap.data.sets.distilled import DistilledSet
    from dap.data.sets.export import export

    made, told = DistilledSet.open(args.set), Bars().images(args.out.name)
    if args.layout == "fkd":
        return judging.store_labels(args, made)
    said = export(made, args.out, args.layout, shard_size=args.shard_size, progress=told)
    print("\n".join([*said["notes"], f"{len(made.records)} images as {args.layout} in {args.out}; see its README.md."]))


def _verify(args: argparse.Namespace) -> None:
    from dap.data.sets.distilled import DistilledSet

    made = DistilledSet.open(args.set)
    made.check_whole()
    print(f"{args.set} is whole: {len(made.records)} images.")


def _check(args: argparse.Namespace) -> int:
    from dap.testing import check, summary

    kind, found = check(args.name, device=args.device, dtype=args.dtype, offline=args.offline)
    seen = [(print(finding, flush=True), finding)[1] for finding in found]
    print(summary(args.name, kind, seen))
    return int(any(finding.level == "wrong" for finding in seen))


VERBS = {
    "demo": _demo,
    "distill": _distill,
    "sweep": _sweep,
    "compare": _compare,
    "methods": _methods,
    "evaluate": judging.evaluate,
    "train-teacher": judging.train_teacher,
    "classify": judging.classify,
    "report": judging.report,
    "caption": _caption,
    "convert": _convert,
    "verify": _verify,
    "import": _import,
    "export": _export,
    "rank": judging.rank,
    "check": _check,
}


if __name__ == "__main__":
    sys.exit(main())
