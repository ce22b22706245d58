"""The command `dap`: a few lines a verb over a function of the same name."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dap.errors import DapError
from dap.flags import build_parser, flag_of, recipe_fields
from dap.progress import Bars


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 a user's mistake, 130 interrupted."""
    args = build_parser(VERBS).parse_args(argv)
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
    for name, _ in recipe_fields():
        given = getattr(args, name)
        if given is not None:
            section, _, leaf = name.rpartition(".")
            inside = values.setdefault(section, {}) if section else values
            if not isinstance(inside, dict):
                raise DapError(f"{section!r} in {args.recipe} should hold a mapping, not {inside!r}.")
            inside[leaf] = given
    return values


def _workshop(args: argparse.Namespace) -> Any:
    import torch

    from dap.engine import Workshop

    if args.threads:
        torch.set_num_threads(args.threads)
    return Workshop(args.device, args.offline, args.cache)


def _command() -> str:
    return shlex.join(["dap", *sys.argv[1:]])


def _judges(args: argparse.Namespace, workshop: Any) -> Callable[[Any], Any]:
    """The judge of sets made from some data, loaded once for each."""
    from dap.backbones import device_of
    from dap.experiment import embedding
    from dap.judge import Judge

    protocol, device = _protocol(args), str(device_of(args.device))
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
            offline=args.offline,
            on=args.on,
            neighbours=args.neighbours,
            together=args.together,
        )

    return lambda data: judge(data.model_copy(update={"size": protocol.size}))


def _protocol(args: argparse.Namespace) -> Any:
    import yaml

    from dap.evaluation.protocol import load_protocol

    changes = {"epochs": args.epochs} if args.epochs else {}
    for item in args.set:
        field, _, value = item.partition("=")
        if not value:
            raise DapError(f"--set takes FIELD=VALUE, such as size=64, not {item!r}.")
        changes[field] = yaml.safe_load(value)
    return load_protocol(args.protocol, **changes)


def _distill(args: argparse.Namespace) -> None:
    from dap.engine import distill
    from dap.recipe import Recipe

    recipe = Recipe.parse(_recipe_values(args), str(args.recipe or "the recipe"))
    made = distill(recipe, args.out, _workshop(args), progress=Bars().images(args.out.name), command=_command())
    print(f"{len(made.records)} images in {made.path}\nNext: dap evaluate {shlex.quote(str(made.path))}")


def _finish(paths: Sequence[Path], out: Path, title: str, track: str | None) -> None:
    from dap.evaluation.claims import Claims
    from dap.evaluation.records import load
    from dap.evaluation.report import write_report
    from dap.evaluation.summary import summarise
    from dap.evaluation.wording import table
    from dap.published import published

    page = write_report(paths, out, title=title, published=published)
    print(table(summarise(load(paths)), Claims(published=published)))
    print(f"\nReport: {page.resolve()}")
    if track:
        from dap.evaluation.tracking import track as log

        print(f"Logged for {track}: {log(load(paths), track, page.parent).resolve()}")


def _check_tracking(args: argparse.Namespace) -> None:
    if args.track:
        from dap.evaluation.tracking import require

        require(args.track)


def _grid(args: argparse.Namespace, cells: Any, title: str) -> None:
    from dap.experiment import sweep

    _check_tracking(args)
    workshop, bars = _workshop(args), Bars()
    i, _, n = getattr(args, "shard", "0/1").partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise DapError(f"--shard takes I/N with I < N, such as 0/2, not {args.shard!r}.")
    sweep(
        cells,
        args.out,
        workshop,
        _judges(args, workshop),
        shard=(int(i), int(n)),
        progress=bars.images,
        on_trial=bars.trial,
        on_epoch=bars.epoch,
        command=_command(),
    )
    _finish([args.out / name for name, _ in cells if (args.out / name).is_dir()], args.out, title, args.track)


def _demo(args: argparse.Namespace) -> None:
    from dap.experiment import grid

    args.out = args.out or Path(f"runs/demo-{args.backbone}")
    base = {"backbone": {"path": {"dit": "starter", "unet": "starter-unet"}[args.backbone]}}
    cells = list(grid(base, {"method": ["random", "vanilla", "dap", "dap-slots"]}, args.sets))
    name = {"dit": "DiT", "unet": "Stable Diffusion's U-Net"}[args.backbone]
    _grid(args, cells, f"Fashion-MNIST at 10 images per class: real, vanilla, DAP ({name})")


def _sweep(args: argparse.Namespace) -> None:
    from dap.experiment import grid
    from dap.registry import suggest

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
    from dap.experiment import grid

    ipcs = {"ipc": args.ipcs} if args.ipcs else {}
    cells = list(grid(_recipe_values(args), {"method": args.methods, **ipcs}, args.sets))
    _grid(args, cells, "Methods compared")


def _evaluate(args: argparse.Namespace) -> None:
    from dap.data.distilled import DistilledSet
    from dap.recipe import Recipe

    _check_tracking(args)
    workshop, bars = _workshop(args), Bars()
    opened = [DistilledSet.from_folder(path, args.classes) for path in args.sets]
    judge_for = _judges(args, workshop)
    for made in opened:
        recorded = (made.recipe or {}).get("data", {})
        if not (args.data or recorded):
            raise DapError(f"{made.path} does not say what real images to test on; give --data.")
        classes = recorded.get("classes") if recorded and not args.data else list(made.class_names)
        data = Recipe.parse({"data": {"path": args.data or recorded["path"], "classes": classes}}).data
        judge_for(data)(made, on_trial=functools.partial(bars.trial, made.path.name), on_epoch=bars.epoch)
    _finish(args.sets, args.out or args.sets[0], "Distilled sets judged", args.track)


def _train_teacher(args: argparse.Namespace) -> None:
    from dap.backbones import device_of
    from dap.evaluation.protocol import load_protocol
    from dap.evaluation.reference import save_reference
    from dap.evaluation.teacher import train_teacher
    from dap.recipe import Recipe

    if args.out.exists():
        raise DapError(f"{args.out} is there already; choose another --out.")
    overrides = {"network": args.network} if args.network else {}
    protocol = load_protocol(args.protocol, **overrides)
    if args.epochs:
        looks = min(protocol.looks, args.epochs)
        protocol = load_protocol(args.protocol, **overrides, epochs=args.epochs, looks=looks)
    data = Recipe.parse({"data": {"path": args.data, "classes": args.classes, "size": protocol.size}}).data
    workshop, kept = _workshop(args), args.out.with_name(args.out.name + ".partial")
    reference, trial = train_teacher(
        workshop.source(data, "train"),
        workshop.source(data, "test"),
        protocol,
        device=str(device_of(args.device)),
        progress=Bars().epoch,
        checkpoints=kept,
    )
    save_reference(reference, args.out)
    shutil.rmtree(kept, ignore_errors=True)
    print(f"{args.out}: {trial.network}, {trial.last:.1%} of {trial.n_test} test images, {trial.seconds:.0f} s")


def _report(args: argparse.Namespace) -> None:
    _check_tracking(args)
    found = [f.parent for path in args.sets for f in sorted(path.glob("**/classes.json"))]
    if not found:
        raise DapError(f"No distilled set in {', '.join(map(str, args.sets))} (looked for classes.json).")
    _finish(found, args.out, args.title, args.track)


def _convert(args: argparse.Namespace) -> None:
    from dap.backbones.convert import convert

    made = convert(**{name: value for name, value in vars(args).items() if name not in ("run", "verb", "debug")})
    print(f"Pipeline in {made}\nNext: dap distill --backbone {shlex.quote(str(made))} --out runs/first")


def _import(args: argparse.Namespace) -> None:
    from dap.data.imports import import_set

    names = ("source", "out", "layout", "ipc", "pick", "seed", "labels", "mean", "std", "licence")
    given = {name: getattr(args, name) for name in names}
    made = import_set(class_names=args.classes, progress=Bars().images(args.out.name), **given)
    print("\n".join(made.noted("import.json")["notes"]))
    print(f"{len(made.records)} images in {made.path}\nNext: dap evaluate {shlex.quote(str(made.path))} --data FOLDER")


def _export(args: argparse.Namespace) -> None:
    from dap.data.distilled import DistilledSet
    from dap.data.export import export

    made, told = DistilledSet.open(args.set), Bars().images(args.out.name)
    said = export(made, args.out, args.layout, shard_size=args.shard_size, progress=told)
    print("\n".join([*said["notes"], f"{len(made.records)} images as {args.layout} in {args.out}; see its README.md."]))


def _verify(args: argparse.Namespace) -> None:
    from dap.data.distilled import DistilledSet

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
    "evaluate": _evaluate,
    "train-teacher": _train_teacher,
    "report": _report,
    "convert": _convert,
    "verify": _verify,
    "import": _import,
    "export": _export,
    "check": _check,
}


if __name__ == "__main__":
    sys.exit(main())
