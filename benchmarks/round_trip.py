"""What the autoencoder of a backbone costs a set of real images, and what a refinement of these images adds or takes.

    python benchmarks/round_trip.py --ipc 10 50

Herding picks the images among the training images, less those that are held out. A network is trained on four forms of them,
and tested on the held-out images (validation), last epoch, one training:

* as they were picked;
* through the autoencoder, D(E(x));
* refined (`herding+refine`), D(z);
* refined, with the loss of the autoencoder given back, x + D(z) - D(E(x)).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import dap
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.protocol import load_protocol
from dap.recipe import Recipe
from dap.workshop import Workshop

HELD_OUT = 0.05


def picked(method: str, args: argparse.Namespace, ipc: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) in [0, 1] and labels (n,) of a set that is made anew."""
    more = {"backbone": args.backbone} if "+" in method else {}
    dap.distill(out=folder, method=method, ipc=ipc, data=args.data, held_out=HELD_OUT, **more)
    return DistilledSet.open(folder).tensors()


def forms(args: argparse.Namespace, ipc: int) -> tuple[dict[str, Tensor], Tensor]:
    """The four forms of the images, (n, 3, h, w) in [0, 1], and their labels (n,)."""
    with tempfile.TemporaryDirectory() as work:
        real, labels = picked("herding", args, ipc, Path(work) / "real")
        refined, others = picked("herding+refine", args, ipc, Path(work) / "refined")
    assert torch.equal(labels, others), "both sets have the same slots"
    backbone = dap.load_backbone(args.backbone)
    with torch.no_grad():
        latents = torch.cat([backbone.encode(part.expand(-1, 3, -1, -1).float()) for part in real.split(50)])
        decoded = torch.cat([backbone.decode(part) for part in latents.split(50)]).clamp(0, 1)
    error = (decoded - real).square().mean().item()
    print(f"{ipc} per class: the round trip has {-10 * math.log10(error):.1f} dB on these images")
    given_back = (real + refined - decoded).clamp(0, 1)
    return {"real": real, "round trip": decoded, "refined": refined, "refined, loss given back": given_back}, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ipc", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--protocol", default="quick-hard")
    parser.add_argument("--network", default="convnet3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for ipc in args.ipc:
        found, labels = forms(args, ipc)
        data = {"path": args.data, "held_out": HELD_OUT, "size": found["real"].shape[-1]}
        source = Workshop("cpu").source(Recipe.parse({"method": "random", "ipc": 1, "data": data}).data, "validation")
        test = source.tensors()
        protocol = load_protocol(args.protocol, looks=1).settled(
            ipc=ipc, classes=len(source.class_names), network=args.network
        )
        for name, images in found.items():
            images = (images.expand(-1, 3, -1, -1) * 255).round() / 255
            for trial in evaluate((images, labels), test, protocol, [0], classes=len(source.class_names)):
                print(f"| {ipc} | {name} | {100 * trial.last:.1f} |", flush=True)


if __name__ == "__main__":
    main()
