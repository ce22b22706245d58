"""Tries this package on a GPU: every verb on the starter, equality with the CPU, and how large DAP's push is.

    python benchmarks/cuda.py smoke --out runs/gpu        # every verb, in float32 and bfloat16; a line for each
    python benchmarks/cuda.py equal --out runs/gpu        # images and networks of the GPU beside those of the CPU
    python benchmarks/cuda.py push --shape dit-xl-2       # ||gamma g_t|| / ||x~ - x_t||, pooled and flattened, gamma = 1

A line that fails says why, and the next line goes on. The exit status is 1 if a line failed. `--device cpu` tries the script
itself. `benchmarks/gpu.sh` runs this and the other benchmarks within the minutes of a lent machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dap.cli.main import main as command
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.training.fitting import seeded
from dap.evaluation.training.networks import build as network
from dap.verbs.distill import distill
from dap.verbs.options import Machine

TWO = ["--classes", "Trouser", "Bag"]
QUICK = ["--steps", "10", "--ipc", "2", *TWO]
REFINED = ["--refine-steps", "5", "--refine-reals", "50"]


class Table:
    """Prints one line for each thing that is tried, at once."""

    def __init__(self) -> None:
        self.failed = 0

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[list[str]]:
        """Time what is tried inside, and print its line. What is put into the list stands in the line."""
        began, said = time.monotonic(), list[str]()
        try:
            yield said
            state = "ok"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.failed += 1
            state = "FAILED"
            said.append(f"{type(error).__name__}: {error}")
            print(traceback.format_exc(), file=sys.stderr, flush=True)
        print(f"| {name} | {state} | {time.monotonic() - began:.1f} | {' '.join(said)} |", flush=True)


def run(*words: str) -> str:
    """Run the command in this process and return what it printed; raises `RuntimeError` if it fails."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command([*words])
    if status == 130:  # the time is over, and the command has caught the signal
        raise KeyboardInterrupt
    if status:
        raise RuntimeError(f"dap {' '.join(words)} ended with {status}: {err.getvalue().strip()[-400:]}")
    return out.getvalue()


def smoke(out: Path, device: str) -> int:
    """Run every verb that computes on the device."""
    table, on = Table(), ["--device", device]
    print("| verb | state | seconds | said |\n|---|---|--:|---|")
    sets: dict[str, str] = {}

    def make(method: str, *words: str, name: str = "") -> None:
        folder = str(out / "sets" / (name or method))
        with table.row(f"distill --method {name or method}"):
            run("distill", "--method", method, "--out", folder, *QUICK, *on, *words)
            sets[name or method] = folder

    make("vanilla")
    make("vanilla", "--dtype", "bfloat16", name="vanilla-bfloat16")
    make("vanilla", "--dtype", "float16", name="vanilla-float16")
    make("dap")
    make("dap", "--dtype", "bfloat16", name="dap-bfloat16")
    make("dap-slots")
    make("auto", *REFINED)
    make("auto", *REFINED, "--dtype", "bfloat16", name="auto-bfloat16")
    make("vanilla+refine", *REFINED)
    make("random", name="random")
    with table.row("evaluate, three networks"):
        networks = "convnet3,resnetap10,resnet18"
        judged = [*list(sets.values())[:2], "--protocol", "quick-hard", "--epochs", "4", "--networks", networks]
        run("evaluate", *judged, *on)
    with table.row("train-teacher"):
        teacher = str(out / "teacher.safetensors")
        run("train-teacher", "--data", "fashion-mnist", *TWO, "--epochs", "1", "--out", teacher, *on)
    with table.row("classify"):
        run("classify", sets["vanilla"], "--times", "4", "--reals", "2", *on)
    with table.row("export --layout fkd"):
        run("export", sets["vanilla"], "--layout", "fkd", "--teacher", teacher, "--out", str(out / "fkd"), *on)
    with table.row("report"):
        run("report", str(out / "sets"), "--out", str(out / "report"))
    with table.row("check starter"):
        run("check", "starter", *on)
    for method in ("mgd3", "manifold-gd", "igd", "d4m", "d3hr", "cao2", "minimax"):
        more = {"igd": ["--option", "epochs=1"], "minimax": ["--option", "epochs=1"]}.get(method, [])
        make(method, *more)
    for method in ("herding", "k-center", "rded", "dm"):
        make(method, *(["--option", "iterations=5"] if method == "dm" else []))
    if Path("starters/dap_starters/unet-pipeline/unet/diffusion_pytorch_model.safetensors").exists():
        make("dap", "--backbone", "starter-unet", name="dap-unet")
        make("auto", "--backbone", "starter-unet", *REFINED, name="auto-unet")
    else:
        print("| starter-unet | left out | 0.0 | its weights were moved aside, for the tree was too large to travel |")
    return table.failed


def equal(out: Path, device: str) -> int:
    """Compare what the device computes with what the CPU computes. Noise is drawn on the CPU for both."""
    table = Table()
    print("| what | state | seconds | largest and mean difference |\n|---|---|--:|---|")
    asked: dict[str, Any] = {"classes": ["Trouser", "Bag"], "ipc": 2, "steps": 10}
    for method in ("vanilla", "dap", "dap-slots", "auto"):
        with table.row(f"images of {method}, in steps of 1/255") as said:
            refined = {"refine_steps": 5, "refine_reals": 50} if method == "auto" else {}

            def made(where: str, method: str = method, refined: dict[str, int] = refined) -> torch.Tensor:
                place = out / "equal" / f"{method}-{where.replace(':', '-')}"
                how = {"method": method, "machine": Machine(device=where), **asked, **refined}
                return DistilledSet.open(distill(out=place, **how).path).tensors()[0] * 255

            apart = (made(device) - made("cpu")).abs()
            said.append(f"{apart.max():.0f} and {apart.mean():.4f}")
    for name in ("convnet3", "resnetap10", "resnet18"):
        with table.row(f"logits and gradients of {name}, relative") as said:
            said.append(compare_network(name, torch.device(device)))
    return table.failed


def compare_network(name: str, device: torch.device) -> str:
    """The relative difference of logits and of the gradient of the first weight, in float32."""
    with seeded(0, torch.device("cpu")):
        net = network(name, classes=10, size=32)
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for where in (torch.device("cpu"), device):
        net = net.to(where)
        net.zero_grad()
        logits = net(images.to(where))
        logits.square().mean().backward()
        first = next(net.parameters()).grad
        assert first is not None
        found.append((logits.detach().cpu(), first.cpu().clone()))
    apart = [(b - a).norm() / a.norm() for a, b in zip(*found, strict=True)]
    return f"{apart[0]:.1e} and {apart[1]:.1e}"


def push(shape: str, device: str) -> int:
    """Print how large the push of Eq. 8 with γ = 1 is beside the sampler's own step. The weights of large shapes are random."""
    from dap.backbones import ClassifierFree
    from dap.data.bank import BankOptions, FeatureBank
    from dap.guidance import Descend, Representative, Window
    from dap.sampling import Batch, sample
    from last_step import Watched
    from sampling import NAME, RandomReals
    from shapes import build

    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    backbone = build(shape, torch.device(device), dtype)
    name = backbone.class_names[0] if backbone.class_names else NAME
    source, model = RandomReals(name, backbone.card.size), ClassifierFree(backbone, backbone.card.cfg)
    print("| shape | layer | pool | ||γ g|| / ||x~ − x_t|| at γ = 1: first, middle, last step |\n|---|---|---|---|")
    for pool in ("mean", "none"):
        bank = FeatureBank(source, backbone, BankOptions(reals=16, pool=pool), ipc=2)
        watched = Watched(Window(Descend(Representative(bank), 1.0, "paper")), 1.0)
        for _ in sample(model, watched, Batch.of(source.class_names, [0, 0], (0, 1), 0), steps=10):
            pass
        ratios = [(norm / step).mean().item() for _, norm, step in watched.seen]
        shown = ", ".join(f"{ratios[i]:.3g}" for i in (0, len(ratios) // 2, -1))
        print(f"| {shape} | {bank.layer} | {pool} | {shown} |", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=["smoke", "equal", "push"])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="starter")
    args = parser.parse_args()
    parts: dict[str, Callable[[], int]] = {
        "smoke": lambda: smoke(args.out, args.device),
        "equal": lambda: equal(args.out, args.device),
        "push": lambda: push(args.shape, args.device),
    }
    try:
        return min(parts[args.part](), 1)
    except KeyboardInterrupt:
        return 124


if __name__ == "__main__":
    sys.exit(main())
