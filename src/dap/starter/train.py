"""Train the embedded starter from nothing: `python -m dap.starter.train --out DIR`.

It is `dap train-backbone` with other sizes, on Fashion-MNIST zero-padded to 32 px. There are three stages: a small
`AutoencoderKL` (32 px -> 4x8x8 latents); its decoder alone, which makes reconstructions sharper and leaves the latents as they
are; and a class-conditional DiT on the latents, with the loss of Nichol & Dhariwal (2021), ||eps - eps_hat||^2 + KL(q || p), so
that it predicts eps and a learned variance exactly as DiT-XL/2 does.

The shipped weights are of the version of this script before `dap train-backbone`, with the steps that are the defaults here. To
train longer, give more steps; the same command goes on after a kill:

    python -m dap.starter.train --out DIR --vae-steps 4000 --decoder-steps 1000 --dit-steps 40000

DIR/pipeline is then an ordinary diffusers `DiTPipeline` folder with fp16 safetensors.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from dap.cli.bars import watcher
from dap.pretraining.autoencoders import decibels, error_of
from dap.pretraining.networks import Sizes
from dap.pretraining.notes import Asked, Notes, Stage
from dap.pretraining.pictures import Pictures
from dap.pretraining.training import Training
from dap.starter import CLASS_NAMES, PIPELINE, SHA256
from dap.starter.images import training_images

HELD_OUT = 0.02
"""The part of the training images that is held out, to see when the loss turns."""


def parts_of_the_training_images() -> tuple[Pictures, Pictures]:
    """The images that are trained on, and those that are held out. No mirror images are shown."""
    images, labels = training_images("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held = max(1, int(HELD_OUT * len(images)))
    images = images.expand(-1, 3, -1, -1)
    return tuple(
        Pictures(images[rows], labels[rows], flip=False, shuffled=True) for rows in (order[held:], order[:held])
    )  # pyright: ignore[reportReturnType]


def notes_of(sizes: Sizes, train: Pictures, held: Pictures, seed: int, **steps: int) -> Notes:
    """The notes of a training with these numbers of steps a stage."""
    asked = Asked(
        kind=sizes.kind,
        size=sizes.size,
        minutes=1,
        autoencoder_steps=steps.get("autoencoder"),
        steps=steps["denoiser"],
        seed=seed,
        flip=False,
        classes=list(CLASS_NAMES),
        data=SHA256["train-images-idx3-ubyte.gz"],
        images=len(train),
        held_out=len(held),
    )
    return Notes(asked=asked, sizes=sizes).but(**{name: Stage(planned=number) for name, number in steps.items()})


def train(
    out: Path, notes: Notes, train: Pictures, held: Pictures, shipped: Path, device: str, vae: Any = None
) -> None:
    """Train into `out/pipeline`, whose card is that of the shipped folder."""
    folder = out / "pipeline"
    Training(folder, train, held, notes, torch.device(device), watcher(), licence="MIT", vae=vae).run()
    (folder / "card.yaml").write_text((shipped / "card.yaml").read_text())


def main() -> None:
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints and the result, both in pipeline/"
    )
    parser.add_argument("--vae-steps", type=int, default=1300)
    parser.add_argument("--decoder-steps", type=int, default=400)
    parser.add_argument("--dit-steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    batches = {"batch_images": args.batch, "batch_latents": args.batch}
    sizes = Sizes(size=32, levels=[16, 32, 64], width=192, depth=8, patch=2, **batches)
    parts = parts_of_the_training_images()
    steps = {"autoencoder": args.vae_steps, "decoder": args.decoder_steps, "denoiser": args.dit_steps}
    train(args.out, notes_of(sizes, *parts, args.seed, **steps), *parts, PIPELINE, args.device)
    vae: Any = AutoencoderKL.from_pretrained(args.out / "pipeline" / "vae", dtype=torch.float32)
    images, labels = training_images("test")
    error = error_of(vae.eval(), Pictures(images.expand(-1, 3, -1, -1), labels), torch.device("cpu"))
    print(f"reconstructions of the test images: {decibels(error):.2f} dB")


if __name__ == "__main__":
    main()
