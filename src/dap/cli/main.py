"""The command `dap`: a few lines a verb over a function of the same name."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dap.base.errors import DapError
from dap.cli import judging
from dap.cli.bars import Bars, Lines
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
    from dap.verbs.judges import open_workshop
    from dap.verbs.report import write_page

    recipe, bars = Recipe.parse(_recipe_values(args), str(args.recipe or "the recipe")), Bars()
    made = distill(
        recipe,
        args.out,
        workshop=open_workshop(judging.machine(args)),
        watcher=bars,
        command=_command(),
    )
    page = write_page([args.out], args.out, f"{args.out.name}: {recipe.method}")
    print(
        f"{len(made.records)} images in {made.path}\nReport: {page}\nNext: dap evaluate {shlex.quote(str(made.path))}"
    )


def _shown(args: argparse.Namespace, run: Callable[..., Any], *given: Any, **options: Any) -> None:
    """Run `compare` or `sweep` and show what they found, also where some cells failed."""
    from dap.verbs.report import Unfinished

    judging.check_tracking(args)
    told = {"judging": judging.judging(args), "machine": judging.machine(args), "watcher": Bars()}
    try:
        results = run(*given, **options, **told, workers=getattr(args, "workers", 1), command=_command())
    except Unfinished as error:
        if error.results is not None:
            judging.show(error.results, args.track)
        raise
    judging.show(results, args.track)


def _worker(args: argparse.Namespace) -> None:
    """One of the processes that `--workers` starts."""
    from dap.base.workers import end_with_parent
    from dap.verbs.compare import work_on

    end_with_parent()
    work_on(args.job, Lines())


def _demo(args: argparse.Namespace) -> None:
    from dap.verbs.compare import sweep

    base = {"backbone": {"path": {"dit": "starter", "unet": "starter-unet"}[args.backbone]}}
    vary = {"method": ["random", "vanilla", "dap", "dap-slots"]}
    name = {"dit": "DiT", "unet": "Stable Diffusion's U-Net"}[args.backbone]
    title = f"Fashion-MNIST at 10 images per class: real, vanilla, DAP ({name})"
    _shown(args, sweep, base, vary, args.sets, args.out or Path(f"runs/demo-{args.backbone}"), title=title)


def _sweep(args: argparse.Namespace) -> None:
    from dap.base.registry import suggest
    from dap.verbs.compare import sweep

    fields = {flag_of(name): name for name, _ in recipe_fields()}
    vary = {}
    for item in args.vary:
        flag, _, values = item.partition("=")
        if flag not in fields or not values:
            raise DapError(f"--vary takes FLAG=V1,V2,…, not {item!r}. {suggest(flag, fields)}")
        vary[fields[flag]] = values.split(",")
    title = f"Sweep over {', '.join(item.partition('=')[0] for item in args.vary) or 'seeds'}"
    _shown(args, sweep, _recipe_values(args), vary, args.sets, args.out, title=title)


def _compare(args: argparse.Namespace) -> None:
    from dap.verbs.compare import compare

    options = judging.assignments(args.option, "--option", "METHOD.NAME")
    _check_wanted(args)
    told = {"options": options, "subsample": args.subsample}
    _shown(args, compare, _recipe_values(args), args.methods, args.ipcs, args.sets, args.out, **told)


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
    from dap.verbs.caption import MODEL, caption

    names = ("classes", "ask", "per_class", "batch")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    made = caption(
        args.data, args.out, model=args.model or MODEL, **options, machine=judging.machine(args), watcher=Bars()
    )
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
    made = import_set(class_names=args.classes, progress=functools.partial(Bars().images, args.out.name), **given)
    print("\n".join(made.noted("import.json")["notes"]))
    print(f"{len(made.records)} images in {made.path}\nNext: dap evaluate {shlex.quote(str(made.path))} --data FOLDER")


def _export(args: argparse.Namespace) -> None:
    from dap.data.sets.distilled import DistilledSet
    from dap.data.sets.export import export

    made, told = DistilledSet.open(args.set), functools.partial(Bars().images, args.out.name)
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
    "worker": _worker,
}


if __name__ == "__main__":
    sys.exit(main())
