"""The flags of the command `dap`, verb by verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dap import __version__
from dap.cli.recipe_flags import add_recipe_flags

Verb = Callable[[argparse.Namespace], int | None]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, not {text!r}")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line, without the list of all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help lists what can be given\n")


def build_parser(run: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """The parser of the command.

    Args:
        run: what each verb does.
    """
    parser = _Parser(
        prog="dap",
        description="Distil a small training set from a pre-trained diffusion model, and judge it. Start with: dap demo",
    )
    parser.add_argument("--version", action="version", version=f"dap {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full trace of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run[name])
        return added

    demo = verb("demo", "the main job on the embedded starter: four methods, their accuracy and a report")
    demo.add_argument("--out", type=Path, help="folder (default: runs/demo-BACKBONE)")
    demo.add_argument(
        "--backbone", choices=["dit", "unet"], default="dit", help="embedded backbone (default: %(default)s)"
    )
    demo.add_argument("--sets", type=_positive, default=1, help="distilled sets a method, each of its own seed")
    _judging(demo, "quick-hard")
    _machine(demo)

    distill = verb("distill", "make a distilled set, or go on with an interrupted one")
    distill.add_argument("recipe", nargs="?", help="YAML file, or the name of a shipped recipe; flags override it")
    distill.add_argument("--out", type=Path, required=True, help="folder of the set")
    add_recipe_flags(distill)
    _machine(distill)

    sweep = verb("sweep", "distil and evaluate a grid of recipes, and report on it")
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
    _sharing(sweep)
    add_recipe_flags(sweep)
    _judging(sweep)
    _machine(sweep)

    compare = verb("compare", "methods beside each other: distil, train several networks, one table and report")
    compare.add_argument("recipe", nargs="?", help="YAML file, or the name of a shipped recipe; flags override it")
    compare.add_argument("--out", type=Path, required=True, help="folder of the comparison")
    compare.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        default=["random", "vanilla", "dap", "dap-slots"],
        metavar="NAME,…",
        help="of dap methods, or file.py:Name; NAME@BACKBONE takes another backbone (default: random,vanilla,dap,dap-slots)",
    )
    compare.add_argument(
        "--ipc",
        dest="ipcs",
        type=lambda text: [_positive(part) for part in text.split(",")],
        default=[],
        metavar="N,…",
        help="images per class, one or several numbers (default: 10)",
    )
    compare.add_argument("--sets", type=_positive, default=3, help="distilled sets a method, each of its own seed (3)")
    compare.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="METHOD.NAME=VALUE",
        help="one of a method's own options, as YAML (dap methods NAME lists them); may be repeated",
    )
    compare.add_argument(
        "--subsample",
        type=lambda text: [_positive(part) for part in text.split(",")],
        default=[],
        metavar="N,…",
        help="judge also random draws of N images a class from each larger set, as the paper's scaling table does",
    )
    _sharing(compare)
    add_recipe_flags(compare, without=("method", "ipc", "options"))
    _judging(compare)
    _machine(compare)

    methods = verb("methods", "list the methods: what each needs, costs and is after, or one with its options")
    methods.add_argument("name", nargs="?", help="a method, or file.py:Name")

    judge = verb("evaluate", "train networks on distilled sets and test them on real images")
    judge.add_argument("sets", nargs="+", type=Path, help="distilled sets, or any folder of class folders")
    judge.add_argument("--data", help="real images to test on (default: what the set was made from)")
    judge.add_argument("--classes", nargs="+", metavar="NAME", help="for a folder of others: as in a recipe")
    judge.add_argument("--out", type=Path, help="folder for the report (default: the set's own)")
    _judging(judge)
    _machine(judge)

    teacher = verb("train-teacher", "train a network on all real images, for soft labels and as a ceiling")
    teacher.add_argument("--data", required=True, help="real images, as in a recipe")
    teacher.add_argument("--classes", nargs="+", metavar="NAME", help="as in a recipe")
    teacher.add_argument("--network", help="instead of the protocol's own: resnet18, convnet3, file.py:build")
    teacher.add_argument("--protocol", default="reference", help="a name or a YAML file (%(default)s)")
    _overriding(teacher)
    teacher.add_argument("--out", type=Path, required=True, help="file to write, such as teacher.safetensors")
    _machine(teacher)

    caption = verb(
        "caption", "write a caption for every real image, for methods that need captions; goes on where it was"
    )
    caption.add_argument("--data", required=True, help="real images, as in a recipe")
    caption.add_argument("--classes", nargs="+", metavar="NAME", help="as in a recipe")
    caption.add_argument("--out", type=Path, required=True, help="file of JSON lines, such as captions.jsonl")
    caption.add_argument("--model", help="folder or hub id of an image-to-text model of transformers (default: BLIP)")
    caption.add_argument(
        "--ask", metavar="TEXT", help="what a chat model is asked, or a caption's beginning; {} is the class"
    )
    caption.add_argument("--per-class", type=_positive, metavar="N", help="images of each class (default: all)")
    caption.add_argument("--batch", type=_positive, default=16, metavar="N", help="images at once (%(default)s)")
    _place(caption)

    _classify(verb)

    report = verb("report", "write one HTML page on evaluated sets, with its tables as Markdown and CSV")
    report.add_argument("sets", nargs="+", type=Path, help="distilled sets, or folders that hold some")
    report.add_argument("--out", type=Path, required=True, help="page or folder")
    report.add_argument("--title", default="Distilled sets compared")
    _tracking(report)

    convert = verb("convert", "write weights people have as a diffusers folder of safetensors")
    convert.add_argument("source", metavar="SOURCE", help="hub id, diffusers folder, or a .pt of the original DiT code")
    convert.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    convert.add_argument("--revision", help="branch, tag or commit of a hub id")
    convert.add_argument("--vae", help="of a .pt: folder or hub id of its autoencoder, stabilityai/sd-vae-ft-ema")
    convert.add_argument("--heads", type=_positive, help="of a .pt whose width is not one of the paper's four")
    convert.add_argument("--classes", type=Path, metavar="FILE", help="JSON list of class names in label order")
    convert.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    convert.add_argument("--offline", action="store_true", help="never ask the network, only the local cache")

    verify = verb("verify", "decode and hash every image of a set and say what is missing or damaged")
    verify.add_argument("set", type=Path)

    _import_export(verb)

    # For the processes that --workers starts, not for people.
    worker = verbs.add_parser("worker")
    worker.set_defaults(run=run["worker"])
    worker.add_argument("job", type=Path)

    check = verb("check", "try a backbone, kernel, guidance or method and say in words what is wrong with it")
    check.add_argument("name", help="starter, a folder, a hub id, a kernel, a method, or your own as file.py:Name")
    _place(check)
    check.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser


def _import_export(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    enter = verb("import", "make a distilled set of images that others made, in any layout of the field")
    enter.add_argument("source", metavar="SOURCE", help="folder of class folders, .pt, .safetensors, parquet or .tar")
    enter.add_argument("--out", type=Path, required=True, help="folder of the set")
    enter.add_argument(
        "--layout",
        default="auto",
        help="folders, minimax (also mgd3, manifoldgd), rded (also ddranking), d4m, tensors, parquet, webdataset, set "
        "(default: found out and said)",
    )
    enter.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="names in label order, imagenette, imagewoof, imageidc, imagenet100, imagenet1k, a .txt or .json file of names, "
        "'sorted', or how many there are where they are only numbered",
    )
    enter.add_argument("--ipc", type=_positive, help="images per class (default: all)")
    enter.add_argument(
        "--pick",
        help="natural: the first, 2 before 10; string: the first, 10 before 2, as MinimaxDiffusion's evaluation takes them; "
        "random (default: string for minimax, else natural)",
    )
    enter.add_argument("--seed", type=int, default=0, help="of a random pick (%(default)s)")
    enter.add_argument("--mean", nargs="+", type=float, metavar="X", help="of normalised tensors, one or one a channel")
    enter.add_argument("--std", nargs="+", type=float, metavar="X", help="likewise")
    enter.add_argument("--labels", metavar="FILE", help="labels of tensors, where they lie in a file of their own")
    enter.add_argument("--licence", help="of the images, for the card")

    leave = verb("export", "write a distilled set in a layout that other tools read")
    leave.add_argument("set", metavar="SET", help="distilled set")
    leave.add_argument("--out", type=Path, required=True, help="folder, new or an earlier export of the same set")
    leave.add_argument(
        "--layout",
        default="imagefolder",
        help="imagefolder, parquet, webdataset, ddranking, pt; fkd: a teacher's labels of it (default: %(default)s)",
    )
    leave.add_argument("--shard-size", type=_positive, help="images a file (default: parquet 5000, webdataset 1000)")
    stored = leave.add_argument_group("fkd")
    stored.add_argument("--teacher", help="a file of dap train-teacher, torchvision:NAME with its ImageNet weights")
    stored.add_argument("--protocol", default="fkd-soft", help="whose augmentation and epochs (%(default)s)")
    _overriding(stored)
    _place(stored)

    rank = verb("rank", "DD-Ranking's scores of evaluated sets: what is the images, what labels and augmentation")
    rank.add_argument("sets", nargs="+", type=Path, help="evaluated sets, or folders that hold some; random ones too")
    rank.add_argument("--network", default="convnet3", help="whose trainings count (%(default)s)")
    rank.add_argument("--hard", metavar="PROTOCOL", help="protocol with hard labels")
    rank.add_argument("--own", metavar="PROTOCOL", help="the methods' own protocol, such as one with soft labels")
    rank.add_argument("--augmented", metavar="PROTOCOL", help="protocol with augmentation")
    rank.add_argument("--plain", metavar="PROTOCOL", help="protocol without")
    rank.add_argument("--full", type=float, metavar="FRACTION", help="accuracy of training on all real images")


def _classify(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    added = verb("classify", "let the backbone itself say what the images of sets show, and real test images")
    added.add_argument("sets", nargs="+", type=Path, help="distilled sets, folders that hold some, or class folders")
    added.add_argument("--backbone", help="as in a recipe (default: what each set was made with)")
    added.add_argument("--data", help="real images to test it on (default: what the set was made from)")
    added.add_argument("--classes", nargs="+", metavar="NAME", help="for a folder of others: as in a recipe")
    added.add_argument("--reals", type=_positive, default=50, metavar="N", help="test images a class (%(default)s)")
    added.add_argument(
        "--times", type=_positive, default=10, metavar="T", help="noise levels an image and class (%(default)s)"
    )
    added.add_argument(
        "--keep",
        type=lambda text: [_positive(part) for part in text.split(",")],
        default=[],
        metavar="K,…",
        help="of many classes: how many are left after each stage, such as 100,10 (default: all to the end)",
    )
    added.add_argument("--seed", type=int, default=0, help="of the noises and the test images (%(default)s)")
    _machine(added)


def _sharing(parser: argparse.ArgumentParser) -> None:
    text = "processes that share the cells (%(default)s); the same command run again elsewhere on the folder joins in"
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help=text)


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
    group.add_argument(
        "--networks",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,…",
        help="instead of the protocol's own: convnet3, resnetap10, resnet18, torchvision:NAME, timm:NAME, file.py:build",
    )
    group.add_argument(
        "--trials",
        "--seeds",
        type=_positive,
        default=trials,
        help="trainings a set, each of its own seed (%(default)s)",
    )
    _overriding(group)
    group.add_argument(
        "--teacher", help="of soft labels: a file of dap train-teacher, torchvision:NAME with its ImageNet weights"
    )
    group.add_argument("--labels", type=Path, metavar="DIR", help="stored labels, of dap export --layout fkd")
    group.add_argument(
        "--on",
        choices=["test", "validation"],
        default="test",
        help="validation: test on training images held out of distillation (--held-out), to choose by (%(default)s)",
    )
    group.add_argument(
        "--reference", type=Path, metavar="FILE", help="network trained on the real data, for measures and predictions"
    )
    group.add_argument(
        "--neighbours", type=_positive, metavar="N", help="real images a class to search for near-copies (default: all)"
    )
    _tracking(group)


def _overriding(group: Any) -> None:
    group.add_argument("--epochs", type=_positive, help="instead of the protocol's own")
    text = "another value of a protocol's field, as YAML: size=64, 'mean=[0.5]'; may be repeated"
    group.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes", help=text)


def _tracking(group: Any) -> None:
    text = "also log trials, measures and images for it; wandb sends them unless WANDB_MODE=offline"
    group.add_argument("--track", choices=["tensorboard", "wandb"], help=text)
