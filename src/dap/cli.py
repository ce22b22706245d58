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
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from dap import __version__
from dap.errors import DapError
from dap.progress import Bars

FLAGS = {"data.path": "data", "backbone.path": "backbone", "guidance.seed": "reals-seed"}
"""Recipe fields whose flag is not simply their name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 a user's mistake, 130 interrupted."""
    args = _parser().parse_args(argv)
    logging.basicConfig(format="dap: %(message)s", level=logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return args.run(args) or 0
    except DapError as error:
        return _fail(args, str(error))
    except MemoryError:
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


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, not {text!r}")
    return int(text)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dap",
        description="Distil a small training set from a pre-trained diffusion model, and judge it. Start with: dap demo",
    )
    parser.add_argument("--version", action="version", version=f"dap {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full trace of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        return added

    demo = verb("demo", _demo, "the main job on the embedded starter: four methods, their accuracy and a report")
    demo.add_argument("--out", type=Path, help="folder (default: runs/demo-BACKBONE)")
    demo.add_argument(
        "--backbone", choices=["dit", "unet"], default="dit", help="embedded backbone (default: %(default)s)"
    )
    demo.add_argument("--sets", type=_positive, default=1, help="distilled sets a method, each of its own seed")
    _judging(demo, "quick-hard")
    _machine(demo)

    distill = verb("distill", _distill, "make a distilled set, or go on with an interrupted one")
    distill.add_argument("recipe", nargs="?", help="YAML file, or the name of a shipped recipe; flags override it")
    distill.add_argument("--out", type=Path, required=True, help="folder of the set")
    _recipe_flags(distill)
    _machine(distill)

    sweep = verb("sweep", _sweep, "distil and evaluate a grid of recipes, and report on it")
    sweep.add_argument("recipe", nargs="?", help="YAML file, or the name of a shipped recipe; flags override it")
    sweep.add_argument("--out", type=Path, required=True, help="folder of the grid")
    sweep.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FLAG=V1,V2,…",
        help="a recipe flag and its values, such as scale=0,0.1,0.2; may be repeated",
    )
    sweep.add_argument(
        "--sets", type=_positive, default=5, help="distilled sets a point, each of its own seed (%(default)s)"
    )
    sweep.add_argument("--shard", default="0/1", metavar="I/N", help="do every N-th cell from I on; run N processes")
    _recipe_flags(sweep)
    _judging(sweep)
    _machine(sweep)

    judge = verb("evaluate", _evaluate, "train networks on distilled sets and test them on real images")
    judge.add_argument("sets", nargs="+", type=Path, help="distilled sets, or any folder of class folders")
    judge.add_argument("--data", help="real images to test on (default: what the set was made from)")
    judge.add_argument("--classes", nargs="+", metavar="NAME", help="for a folder of others: as in a recipe")
    judge.add_argument("--out", type=Path, help="folder for the report (default: the set's own)")
    _judging(judge)
    _machine(judge)

    report = verb("report", _report, "write one HTML page on evaluated sets, with its tables as Markdown and CSV")
    report.add_argument("sets", nargs="+", type=Path, help="distilled sets, or folders that hold some")
    report.add_argument("--out", type=Path, required=True, help="page or folder")
    report.add_argument("--title", default="Distilled sets compared")

    convert = verb("convert", _convert, "write weights people have as a diffusers folder of safetensors")
    convert.add_argument("source", metavar="SOURCE", help="hub id, diffusers folder, or a .pt of the original DiT code")
    convert.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    convert.add_argument("--revision", help="branch, tag or commit of a hub id")
    convert.add_argument("--vae", help="of a .pt: folder or hub id of its autoencoder, stabilityai/sd-vae-ft-ema")
    convert.add_argument("--heads", type=_positive, help="of a .pt whose width is not one of the paper's four")
    convert.add_argument("--classes", type=Path, metavar="FILE", help="JSON list of class names in label order")
    convert.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    convert.add_argument("--offline", action="store_true", help="never ask the network, only the local cache")

    verify = verb("verify", _verify, "decode and hash every image of a set and say what is missing or damaged")
    verify.add_argument("set", type=Path)

    check = verb("check", _check, "try a backbone, kernel, guidance or method and say in words what is wrong with it")
    check.add_argument("name", help="starter, a folder, a hub id, a kernel, a method, or your own as file.py:Name")
    _place(check)
    check.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser


def _machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine (no part of the recipe)")
    _place(group)
    group.add_argument("--cache", type=Path, help="folder in which runs share their real features")
    group.add_argument("--threads", type=_positive, help="CPU threads")


def _place(group: Any) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    group.add_argument("--offline", action="store_true", help="never ask the network, only the local cache")


def _judging(parser: argparse.ArgumentParser, protocol: str = "small-hard", trials: int = 1) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--protocol", default=protocol, help="a name or a YAML file (%(default)s)")
    group.add_argument("--network", help="instead of the protocol's own: convnet3, resnetap10, resnet18, file.py:build")
    group.add_argument(
        "--trials", type=_positive, default=trials, help="trainings a set, each of its own seed (%(default)s)"
    )
    group.add_argument("--epochs", type=_positive, help="instead of the protocol's own")


def _recipe_fields() -> list[tuple[str, Any]]:
    """Every field of a recipe as (dotted name, pydantic field)."""
    from dap.recipe import BackboneChoice, Data, GuidanceOptions, Recipe, Sampling

    sections = {"data": Data, "backbone": BackboneChoice, "sampling": Sampling, "guidance": GuidanceOptions}
    top = [(name, f) for name, f in Recipe.model_fields.items() if name not in sections]
    return top + [(f"{section}.{name}", f) for section, m in sections.items() for name, f in m.model_fields.items()]


def _flag(field: str) -> str:
    return FLAGS.get(field, field.split(".")[-1]).replace("_", "-")


def _recipe_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe")
    for name, field in _recipe_fields():
        kind = field.annotation
        options: dict[str, Any] = {"dest": name, "help": (field.description or "").replace("%", "%%")}
        if field.default is not None and field.default != "":
            options["help"] += f" Default: {field.default}."
        arms = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        choices = [c for arm in arms if get_origin(arm) is Literal for c in get_args(arm)]
        if name == "data.classes":
            options |= {"nargs": "+", "metavar": "NAME"}
        elif choices and int not in arms:
            options["choices"] = choices
        elif bool in arms:
            options["choices"] = ["true", "false"]
        else:
            options["metavar"] = next((a.__name__.upper() for a in arms if isinstance(a, type)), "VALUE")
        group.add_argument(f"--{_flag(name)}", **options)


def _recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """The YAML file's values under the flags given."""
    from dap.recipe import Recipe

    values = Recipe.load(args.recipe) if args.recipe else {}
    for name, _ in _recipe_fields():
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
    from dap.evaluation.protocol import load_protocol
    from dap.experiment import Judge, embedding

    protocol = load_protocol(args.protocol)
    if args.epochs:
        protocol = load_protocol(args.protocol, epochs=args.epochs, looks=min(protocol.looks, args.epochs))
    device = str(device_of(args.device))

    @functools.cache
    def judge(data: Any) -> Any:
        train, test = (workshop.source(data, split) for split in ("train", "test"))
        features = embedding(data.path, protocol.size)
        return Judge(train, test, protocol, range(args.trials), args.network, features, device)

    return lambda data: judge(data.model_copy(update={"size": protocol.size}))


def _distill(args: argparse.Namespace) -> None:
    from dap.engine import distill
    from dap.recipe import Recipe

    recipe = Recipe.parse(_recipe_values(args), str(args.recipe or "the recipe"))
    made = distill(recipe, args.out, _workshop(args), progress=Bars().images(args.out.name), command=_command())
    print(f"{len(made.records)} images in {made.path}\nNext: dap evaluate {shlex.quote(str(made.path))}")


def _finish(paths: Sequence[Path], out: Path, title: str) -> None:
    from dap.evaluation.records import load
    from dap.evaluation.report import write_report
    from dap.evaluation.summary import summarise
    from dap.evaluation.wording import table

    page = write_report(paths, out, title=title)
    print(table(summarise(load(paths))))
    print(f"\nReport: {page.resolve()}")


def _grid(args: argparse.Namespace, cells: Any, title: str) -> None:
    from dap.experiment import sweep

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
    _finish([args.out / name for name, _ in cells if (args.out / name).is_dir()], args.out, title)


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

    fields = {_flag(name): name for name, _ in _recipe_fields()}
    vary = {}
    for item in args.vary:
        flag, _, values = item.partition("=")
        if flag not in fields or not values:
            raise DapError(f"--vary takes FLAG=V1,V2,…, not {item!r}. {suggest(flag, fields)}")
        vary[fields[flag]] = values.split(",")
    cells = list(grid(_recipe_values(args), vary, args.sets))
    _grid(args, cells, f"Sweep over {', '.join(item.partition('=')[0] for item in args.vary) or 'seeds'}")


def _evaluate(args: argparse.Namespace) -> None:
    from dap.data.distilled import DistilledSet
    from dap.recipe import Recipe

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
    _finish(args.sets, args.out or args.sets[0], "Distilled sets judged")


def _report(args: argparse.Namespace) -> None:
    found = [f.parent for path in args.sets for f in sorted(path.glob("**/classes.json"))]
    if not found:
        raise DapError(f"No distilled set in {', '.join(map(str, args.sets))} (looked for classes.json).")
    _finish(found, args.out, args.title)


def _convert(args: argparse.Namespace) -> None:
    from dap.backbones.convert import convert

    made = convert(**{name: value for name, value in vars(args).items() if name not in ("run", "verb", "debug")})
    print(f"Pipeline in {made}\nNext: dap distill --backbone {shlex.quote(str(made))} --out runs/first")


def _verify(args: argparse.Namespace) -> None:
    from dap.data.distilled import DistilledSet

    made = DistilledSet.open(args.set)
    problems = made.verify()
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DapError(f"{args.set} is not whole: {shown}. Run the dap distill that made it again to mend it.")
    print(f"{args.set} is whole: {len(made.records)} images.")


def _check(args: argparse.Namespace) -> int:
    from dap.testing import check, summary

    kind, found = check(args.name, device=args.device, dtype=args.dtype, offline=args.offline)
    seen = [(print(finding, flush=True), finding)[1] for finding in found]
    print(summary(args.name, kind, seen))
    return int(any(finding.level == "wrong" for finding in seen))


if __name__ == "__main__":
    sys.exit(main())
