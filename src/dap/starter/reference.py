"""Train the starter's reference network on Fashion-MNIST: `python -m dap.starter.reference --out DIR`.

The network is a ConvNet-3, trained by the protocol `reference`. Two files are written into DIR: `convnet3.safetensors`,
which `dap.evaluation.training.loading.load_trained` reads, and `training.json` with recipe, seed, accuracy after
every epoch and cost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dap.evaluation.training.loading import save_classifier
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.trained import train_on_tensors
from dap.starter import CLASS_NAMES, verify_data
from dap.starter.images import training_images


def real_images(split: str) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST as the evaluation reads it: float images (n, 3, 32, 32) in [0, 1] and labels (n,)."""
    images, labels = training_images(split)
    return (images.float() / 255).expand(-1, 3, -1, -1), labels


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the starter's reference network on Fashion-MNIST.")
    parser.add_argument("--out", type=Path, required=True, help="folder for convnet3.safetensors and training.json")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    verify_data()
    protocol = load_protocol("reference", epochs=args.epochs, looks=args.epochs)
    with tqdm(total=args.epochs, desc="reference", unit="epoch") as bar:
        classifier, trial = train_on_tensors(
            real_images("train"),
            real_images("test"),
            protocol,
            len(CLASS_NAMES),
            class_names=CLASS_NAMES,
            seed=args.seed,
            device=args.device,
            progress=lambda seed, finished, total: bar.update(),
        )
    save_classifier(classifier, args.out / "convnet3.safetensors")
    facts = {"protocol": protocol.model_dump(), "trial": json.loads(trial.to_json())}
    (args.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(trial.to_json())


if __name__ == "__main__":
    main()
