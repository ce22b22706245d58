"""Train the second starter from nothing: `python -m dap.starter.unet --out DIR`.

It is `dap train-backbone --kind unet` with other sizes, on the latents of the first starter's autoencoder. The result is a
small Stable Diffusion: a `UNet2DConditionModel` and a CLIP text encoder, trained together on prompts such as "a photo of a
dress". One prompt in ten is empty, because classifier-free guidance needs this. The schedule is Stable Diffusion's.

The shipped weights are of the version of this script before `dap train-backbone`, with the steps that are the default here. To
train longer, give more --steps; the same command goes on after a kill. DIR/pipeline is an ordinary diffusers
`StableDiffusionPipeline` folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from dap.pretraining.networks import Sizes
from dap.starter import PIPELINE, UNET_PIPELINE
from dap.starter.train import notes_of, parts_of_the_training_images, train


def main() -> None:
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints and the result, both in pipeline/"
    )
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    vae: Any = AutoencoderKL.from_pretrained(PIPELINE / "vae", dtype=torch.float32)
    sizes = Sizes(kind="unet", size=32, levels=[16, 32, 64], width=64, depth=1, batch_latents=args.batch)
    parts = parts_of_the_training_images()
    notes = notes_of(sizes, *parts, args.seed, denoiser=args.steps)
    train(args.out, notes, *parts, UNET_PIPELINE, args.device, vae.to(args.device).eval())


if __name__ == "__main__":
    main()
