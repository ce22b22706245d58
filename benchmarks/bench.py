"""One table of ratios: what the parts of this package cost beside what they stand in for, side by side in one run.

    make bench                       # about 10 minutes on 2 cores
    make bench ARGS=--quick          # one round of everything, about 2 minutes
    make bench ARGS="--only sampling --rounds 5 --out bench.md"

All ways take turns in rounds. A ratio is taken within a round, and the table shows the median over rounds (min–max).
By default the seconds are those of the processor on one thread, which other work on the machine changes little;
`--clock wall` counts others.

    start-up    the command in a process of its own, beside bare Python; and a whole `dap distill` of one image in two
                steps, beside a script that loads the same pipeline by diffusers alone and samples the same
    sampling    one class by a method as the command makes it: real images read and encoded, features, guidance,
                decoding. "beside" is vanilla sampling of as many images. "diffusers' pipeline" is
                `DiffusionPipeline.from_pretrained` with its own scheduler, 10 images in one batch. "the plain loop"
                samples one image at a time: for vanilla without guidance, for all other rows DAP as the field's scripts
                do it (see benchmarks/sampling.py). It takes a fifth of the steps, which are all alike, and its time is
                multiplied by five. It encodes no real images, which favours it
    bank        the features of 64 real images at all steps: the first batch of a class less a later one
    evaluation  `dap evaluate` beside the field's training loop, which opens and transforms images one by one
                (see benchmarks/evaluation.py)
    report      the page of a set of 10 classes and 10 images per class, beside vanilla sampling of these images

A second table says what the time of sampling is spent on, as shares of all calls of a way. "passes" are those of the
prediction and of the samples' features.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import evaluation
import startup
from dap.backbones import Backbone
from dap.methods import Unit
from dap.recipe import Recipe
from dap.sampling import Batch
from dap.starter import PIPELINE, UNET_PIPELINE
from dap.workshop import Workshop
from sampling import plain_loop

PARTS = ("start-up", "sampling", "evaluation", "report")
STARTERS = {"starter": PIPELINE, "starter-unet": UNET_PIPELINE}
CLASS = "Dress"
BATCH = 10

Times = dict[str, list[float]]
Row = tuple[str, str, str, str, str, str, str]
HEAD: Row = ("part", "what", "beside", "ratio", "× diffusers' pipeline", "the plain loop takes, ×", "wanted")
WANTED = {"dap, ipc 10": 1.6, "dap, ipc 50": 1.6, "dap, a later batch": 1.6}
"""The largest cost beside vanilla that we want."""


class Spent:
    """Seconds of the parts of a backbone's work. A part inside another one counts for the outer one."""

    def __init__(self, backbone: Backbone, now: Callable[[], float]) -> None:
        self.now, self.parts, self.inside = now, defaultdict[str, float](float), False
        names = {
            "predict": "passes",
            "features": "passes",
            "tap": "real features",
            "encode": "encoding",
            "decode": "decoding",
        }
        for name, part in names.items():
            setattr(backbone, name, self.counted(getattr(backbone, name), part))

    def counted(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **keywords: Any) -> Any:
            if self.inside:
                return call(*args, **keywords)
            began, self.inside = self.now(), True
            try:
                return call(*args, **keywords)
            finally:
                self.inside = False
                self.parts[part] += self.now() - began

        return wrapped

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Count the calls of `torch.autograd.grad` too."""
        before = torch.autograd.grad
        torch.autograd.grad = self.counted(before, "gradient")
        try:
            yield
        finally:
            torch.autograd.grad = before


class Sampling:
    """The ways of sampling ten images of a class with a starter."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        from diffusers import DiffusionPipeline

        self.name, self.args = name, args
        self.workshop = Workshop(args.device)
        self.pipe: Any = DiffusionPipeline.from_pretrained(str(STARTERS[name]), dtype=torch.float32).to(args.device)
        self.pipe.set_progress_bar_config(disable=True)
        if name == "starter":
            with_null_label_1000(self.pipe.transformer)
        self.times: Times = defaultdict(list)
        self.shares: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        _, task = self.task("vanilla", BATCH, 0)
        self.backbone = task.backbone
        self.spent = Spent(self.backbone, lambda: now(args))

    def task(self, method: str, ipc: int, seed: int, steps: int | None = None) -> tuple[Any, Any]:
        values: dict[str, Any] = {"method": method, "ipc": ipc, "seed": seed, "backbone": {"path": self.name}}
        values["data"] = {"path": "fashion-mnist", "classes": [CLASS]}
        steps = steps or self.args.steps
        if method == "auto":
            values["refine"] = {"steps": 2 * (steps or self.args.steps)}
        else:
            values |= {"sampling": {"steps": steps}, "block": BATCH}
        return self.workshop.task(Recipe.parse(values))

    def round(self, seed: int, steps: int | None = None) -> None:
        """Every way once. `steps` makes a round of fewer steps, which warms up and does not count."""
        work: dict[str, Callable[[], object]] = {
            "diffusers": lambda: self.by_diffusers(seed, steps or self.args.steps),
            "plain vanilla": lambda: self.plainly(None, seed, steps),
            "plain dap": lambda: self.plainly(torch.randn(64, *self.backbone.latent_shape), seed, steps),
        }
        for way, method, ipc in WAYS:
            made, task = self.task(method, ipc, seed, steps)
            make = made.prepare(task)
            for first in range(0, min(ipc, 2 * BATCH) if method == "dap" else ipc, task.recipe.block):
                slots = tuple(range(first, min(first + task.recipe.block, ipc)))
                work[way if not first else f"{way} later"] = lambda make=make, slots=slots: make(Unit(0, slots))
        for way, run in work.items():
            self.spent.parts.clear()
            with self.spent.gradients():
                began = now(self.args)
                run()
                seconds = now(self.args) - began
            if steps is None:
                self.times[way].append(seconds * (self.args.steps / self.few if way.startswith("plain") else 1))
                for part, value in self.spent.parts.items():
                    self.shares[way][part] += value

    def by_diffusers(self, seed: int, steps: int) -> None:
        of = {"class_labels": [3] * BATCH} if self.name == "starter" else {"prompt": [f"a photo of a {CLASS}"] * BATCH}
        generator = torch.Generator().manual_seed(seed)
        self.pipe(**of, guidance_scale=1.5, num_inference_steps=steps, output_type="np", generator=generator)

    def plainly(self, reals: torch.Tensor | None, seed: int, steps: int | None) -> None:
        card = self.backbone.card
        reals = None if reals is None else reals.to(self.backbone.device)
        batch = Batch.of((CLASS,), [0], [0], seed)
        self.backbone.decode(plain_loop(self.backbone, card.cfg, card.layer, batch, reals, 0.01, steps or self.few))

    @property
    def few(self) -> int:
        """The steps of the plain loop, which are alike and many times as long."""
        return max(2, self.args.steps // 5)

    def rows(self) -> list[Row]:
        times, vanilla = self.times, self.times["vanilla"]
        fresh, later = times["dap"], times["dap later"]
        costs = {
            "vanilla": vanilla,
            "dap, ipc 10": fresh,
            "dap, a later batch": later,
            "dap, ipc 50": [(a + 4 * b) / 5 for a, b in zip(fresh, later, strict=True)],
            "dap-slots, ipc 10": times["dap-slots"],
            "auto, ipc 10": times["auto"],
        }
        rows = []
        for what, seconds in costs.items():
            plain = [BATCH * one for one in times["plain vanilla" if what == "vanilla" else "plain dap"]]
            beside = "–" if what == "vanilla" else ratio(seconds, vanilla)
            cells = ("vanilla", beside, ratio(seconds, times["diffusers"]), ratio(plain, seconds))
            rows.append((self.name, what, *cells, f"≤ {WANTED[what]}" if what in WANTED else ""))
        if "auto 50" in times:
            large, many = times["auto 50"], [5 * one for one in vanilla]
            plain = [5 * BATCH * one for one in times["plain dap"]]
            diffusers = [5 * one for one in times["diffusers"]]
            cells = (ratio(large, many), ratio(large, diffusers), ratio(plain, large))
            rows.append((self.name, "auto, ipc 50", "vanilla", *cells, ""))
        bank = [max(0.0, a - b) for a, b in zip(fresh, later, strict=True)]
        rows.append((self.name, "bank: 64 real images", "vanilla", ratio(bank, vanilla), "–", "–", ""))
        return rows

    def spent_rows(self) -> list[tuple[str, ...]]:
        rows = []
        for way in [way for way in self.shares if not way.startswith(("diffusers", "plain"))]:
            whole = sum(self.times[way])
            parts = [self.shares[way][part] / whole for part in SPENT_ON]
            rows.append((self.name, way, *(f"{part:.0%}" for part in [*parts, 1 - sum(parts)])))
        return rows


WAYS = [
    ("vanilla", "vanilla", BATCH),
    ("dap", "dap", 2 * BATCH),
    ("dap-slots", "dap-slots", BATCH),
    ("auto", "auto", BATCH),
]
"""For each way its method and its ipc. Of `dap` the second ten images are "dap later"."""

SPENT_ON = ("passes", "gradient", "real features", "encoding", "decoding")


def with_null_label_1000(transformer: Any) -> None:
    """Let `DiTPipeline` guide a transformer of fewer classes than ImageNet's: its null label is always 1000."""
    for block in transformer.transformer_blocks:
        of = block.norm1.emb.class_embedder
        known = of.embedding_table.weight.data
        rows = torch.cat([known[:-1], known[-1:].expand(1001 - len(known) + 1, -1)])
        of.embedding_table = torch.nn.Embedding.from_pretrained(rows)


def start_up(args: argparse.Namespace) -> list[Row]:
    """The command in processes of their own; processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        script = (
            "from diffusers import DiffusionPipeline as P; p = P.from_pretrained({!r}); "
            "p([3], guidance_scale=1, num_inference_steps=2)[0][0].save({!r})"
        ).format(str(PIPELINE), f"{folder}/image.png")
        whole = [
            "-m",
            "dap",
            "distill",
            "--method",
            "vanilla",
            "--ipc",
            "1",
            "--steps",
            "2",
            "--classes",
            CLASS,
            "--out",
        ]
        light = {name: startup.ROWS[name][0] for name in (startup.BARE, "dap --help", "dap distill --help")}
        found = startup.in_turns(light, 1 if args.quick else 7)
        heavy = {"diffusers": ["-c", script], "distill": []}
        times: Times = {name: [] for name in heavy}
        for number in range(args.rounds if args.quick else 1 + args.rounds):
            heavy["distill"] = [*whole, f"{folder}/{number}"]
            for name, words in heavy.items():
                seconds = startup.cpu_seconds(words)
                if number or args.quick:  # the first run reads files from the disk and may write bytecode
                    times[name].append(seconds)
    bare = found[startup.BARE]
    rows = [
        ("start-up", f"`{name}`", "bare Python", ratio(found[name], bare), "–", "–", "") for name in list(light)[1:]
    ]
    of = ("start-up", "`dap distill`, 1 image, 2 steps", "bare Python")
    over = ratio(times["distill"], [statistics.median(bare)] * args.rounds)
    return [*rows, (*of, over, ratio(times["distill"], times["diffusers"]), "–", "")]


def judging(args: argparse.Namespace) -> list[Row]:
    words = f"--network convnet6 --size 64 --epochs 4 --looks 1 --test-per-class 20 --rounds {args.rounds} --workers 0"
    words += f" --device {args.device} --clock {args.clock} --threads {args.threads} {args.evaluation}"
    flags = evaluation.parsed(words.split())
    rounds = [found for found in evaluation.rounds_of(flags)]
    rows: list[Row] = []
    for network in flags.network:
        for part in ("train", "test"):
            plain, ours = (
                [evaluation.median(getattr(found[network][way], part)) for found in rounds] for way in ("plain", "dap")
            )
            what = f"{network}, {'an epoch' if part == 'train' else 'a look at the test images'}"
            rows.append(("evaluation", what, "–", "–", "–", ratio(plain, ours), "≥ 1.5"))
    return rows


def page(args: argparse.Namespace, vanilla: Sequence[float]) -> list[Row]:
    import dap

    with tempfile.TemporaryDirectory() as folder:
        dap.distill({"method": "random", "ipc": args.report_ipc}, out=f"{folder}/set")
        times = []
        for number in range(args.rounds + 1):
            began = now(args)
            dap.report(f"{folder}/set", f"{folder}/{number}")
            times.append(now(args) - began)
    set_of = [args.report_ipc * one for one in vanilla]
    return [("report", f"a set of {10 * args.report_ipc} images", "vanilla", ratio(times[1:], set_of), "–", "–", "")]


def now(args: argparse.Namespace) -> float:
    return evaluation.now(torch.device(args.device), args.clock)


def ratio(seconds: Sequence[float], beside: Sequence[float]) -> str:
    """The ratio of each round, as median (min–max)."""
    found = [a / b for a, b in zip(seconds, beside, strict=False)]
    shown = f"{statistics.median(found):.3g}"
    return shown if len(found) == 1 else f"{shown} ({min(found):.3g}–{max(found):.3g})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are straight in a terminal and which is Markdown too."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def machine(args: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else evaluation_processor()
    clock = "processor seconds" if args.clock == "cpu" else "wall seconds"
    return (
        f"{device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {clock}, {args.threads} thread"
        f"{'s' * (args.threads > 1)}, {args.rounds} round{'s' * (args.rounds > 1)} of {args.steps} steps; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def evaluation_processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of everything, about 2 minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument(
        "--starter", nargs="+", choices=STARTERS, default=list(STARTERS), help="whose sampling is measured"
    )
    parser.add_argument("--rounds", type=int, help="of every part (default: 3, with --quick 1)")
    parser.add_argument(
        "--steps", type=int, default=50, help="of sampling; a refinement takes twice as many (%(default)s)"
    )
    parser.add_argument(
        "--auto-50", action="store_true", help="measure `auto` at 50 images per class too, which takes minutes"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=evaluation.CLOCKS, help="default: cpu, and wall on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--evaluation", default="", help="more flags of benchmarks/evaluation.py, in quotes")
    parser.add_argument("--report-ipc", type=int, default=10, help="images per class of the set whose report is made")
    parser.add_argument("--out", type=Path, help="a file to write the tables into as well")
    args = parser.parse_args(words)
    gpu = args.device.startswith("cuda")
    if gpu and args.clock == "cpu":
        parser.error("the processor's seconds say nothing about a GPU; leave out --clock cpu")
    args.clock = args.clock or ("wall" if gpu else "cpu")
    args.rounds = args.rounds or (1 if args.quick else 3)
    return args


def main() -> None:
    args = parsed()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes of the start-up
    torch.set_num_threads(args.threads)
    began, rows, spent = time.perf_counter(), list[Row](), list[tuple[str, ...]]()
    vanilla: Mapping[str, list[float]] = {}
    said = machine(args)

    def tell(what: str) -> None:
        print(f"{time.perf_counter() - began:4.0f} s  {what}", file=sys.stderr, flush=True)

    if "start-up" in args.only:
        tell("start-up")
        rows += start_up(args)
    if "sampling" in args.only or "report" in args.only:
        if args.auto_50:
            WAYS.append(("auto 50", "auto", 50))
        ways = [Sampling(name, args) for name in args.starter]
        for one in ways:
            tell(f"{one.name}: a short round that does not count")
            one.round(args.rounds, steps=2)
        for number in range(args.rounds):
            for one in ways:
                tell(f"{one.name}: round {number + 1} of {args.rounds}")
                one.round(number)
        vanilla = ways[0].times
        if "sampling" in args.only:
            rows += [row for one in ways for row in one.rows()]
            spent = [row for one in ways for row in one.spent_rows()]
    if "evaluation" in args.only:
        tell("evaluation")
        rows += judging(args)
    if "report" in args.only:
        tell("report")
        rows += page(args, vanilla["vanilla"])
    tell("done")
    text = f"{said}\n\n{markdown(HEAD, rows)}\n"
    if spent:
        text += "\n" + markdown(("starter", "way", *SPENT_ON, "rest"), spent) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
