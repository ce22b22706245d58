"""Train the embedded starter from nothing: `python -m dap.starter.train --out DIR`.

There are three stages. Each is a function of the seed alone and continues from its last checkpoint.

1. A small `AutoencoderKL` is trained (32 px -> 4x8x8 latents).
2. Its decoder is trained further, alone, because that makes the reconstructions sharper and leaves the latents as they are.
3. A class-conditional DiT is trained on the latents with the hybrid loss of Nichol & Dhariwal (2021),
   L = ||eps - eps_hat||^2 + KL(q || p), so that it predicts eps and a learned variance exactly as DiT-XL/2 does.

The result is an ordinary diffusers `DiTPipeline` folder with fp16 safetensors.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dap.backbones.finetune import MovingAverage
from dap.starter import CLASS_NAMES, PIPELINE
from dap.starter.images import training_images

BETAS = (1e-4, 0.02)
TRAIN_STEPS = 1000
NULL_LABEL = len(CLASS_NAMES)
DROP_LABEL = 0.1


def build_autoencoder() -> Any:
    import diffusers

    build: Any = diffusers.AutoencoderKL  # its annotations say one-element tuples
    return build(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def build_transformer() -> Any:
    from diffusers import DiTTransformer2DModel

    # The network stays in evaluation mode. In training mode each block would drop labels in its own label embedding; here
    # the null label is drawn once for an image and all blocks see it.
    return DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=8,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=len(CLASS_NAMES),
        norm_num_groups=32,
    ).eval()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """The learning rate at a step: a linear warm-up, then a cosine down to one hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(
    name: str,
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    *,
    out: Path,
    steps: int,
    peak: float,
    seed: int,
    decay: float,
    every: int = 250,
) -> dict[str, Any]:
    """Minimise `loss_of`, and leave the averaged weights in `module`.

    A run continues from `out/name.pt` if that file exists. Each step draws from a generator seeded by (seed, step), so that a
    resumed run sees the same batches.
    """
    checkpoint = out / f"{name}.pt"
    optimiser = torch.optim.AdamW(module.parameters(), lr=peak, weight_decay=0.0, betas=(0.9, 0.99))
    average, start, seconds = MovingAverage(module.named_parameters(), decay), 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        optimiser.load_state_dict(saved["optimiser"])
        average.values, start, seconds = saved["ema"], saved["step"], saved["seconds"]
    began, log = time.monotonic(), out / f"{name}.jsonl"
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        average.update(module.named_parameters(), step)
        if (step + 1) % every == 0 or step + 1 == steps:
            spent = seconds + time.monotonic() - began
            bar.set_postfix(loss=f"{loss.item():.4f}")
            with log.open("a") as file:
                file.write(json.dumps({"step": step + 1, "loss": loss.item(), "seconds": round(spent, 1)}) + "\n")
            state = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "ema": average.values}
            aside = checkpoint.with_suffix(".tmp")
            torch.save({**state, "step": step + 1, "seconds": spent}, aside)
            os.replace(aside, checkpoint)
    seconds += time.monotonic() - began
    module.load_state_dict(average.values, strict=False)
    return {"steps": steps, "seconds": round(seconds), "parameters": sum(p.numel() for p in module.parameters())}


def pick(generator: torch.Generator, n: int, batch: int, device: torch.device) -> Tensor:
    return torch.randint(n, (batch,), generator=generator).to(device)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def train_autoencoder(
    out: Path, steps: int, decoder_steps: int, batch: int, seed: int, device: torch.device
) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(seed)
    vae: Any = build_autoencoder().to(device, memory_format=torch.channels_last)
    images, _ = training_images("train")

    def draw(generator: torch.Generator) -> Tensor:
        x = images[pick(generator, len(images), batch, torch.device("cpu"))]
        return (x.to(device).float() / 127.5 - 1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def loss_of(generator: torch.Generator) -> Tensor:
        x = draw(generator)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * normal(posterior.mean, generator)
        error = vae.decode(z).sample - x
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return error.square().mean() + 0.02 * error.abs().mean() + 1e-4 * kl

    def loss_of_decoder(generator: torch.Generator) -> Tensor:
        x = draw(generator)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
        return (vae.decode(z).sample - x).square().mean()

    cost = fit("vae", vae, loss_of, out=out, steps=steps, peak=2e-3, seed=seed, decay=0.995)
    if decoder_steps:
        # The latents stay as they are, so a DiT trained on them stays valid.
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        extra = fit("decoder", vae, loss_of_decoder, out=out, steps=decoder_steps, peak=2e-3, seed=seed, decay=0.995)
        cost |= {"decoder_steps": decoder_steps, "seconds": cost["seconds"] + extra["seconds"]}
    return vae.eval(), {**cost, "batch": batch, "psnr_test_db": round(psnr(vae, "test", device), 2)}


@torch.no_grad()
def encode_all(vae: Any, split: str, device: torch.device) -> Iterator[tuple[Tensor, Any]]:
    images, _ = training_images(split)
    for chunk in tqdm(images.split(500), desc=f"encode {split}", mininterval=10):
        x = (chunk.to(device).float() / 127.5 - 1).expand(-1, 3, -1, -1)
        yield x, vae.encode(x).latent_dist


@torch.no_grad()
def psnr(vae: Any, split: str, device: torch.device) -> float:
    """The PSNR of the autoencoder over a split: 10 log10(1 / MSE) in dB, for images in [0, 1]. Images are reconstructed
    from the mean of the posterior."""
    errors = [
        (vae.decode(posterior.mean).sample.clamp(-1, 1) - x).div(2).square().mean(dim=(1, 2, 3)).cpu()
        for x, posterior in encode_all(vae, split, device)
    ]
    return 10 * math.log10(1 / torch.cat(errors).mean().item())


class HybridLoss:
    """The loss L_simple + L_vlb on latents, for a learned-range variance (Nichol & Dhariwal 2021, eq. 15 and 16)."""

    def __init__(self, device: torch.device) -> None:
        beta = torch.linspace(*BETAS, TRAIN_STEPS, dtype=torch.float64)
        abar = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        posterior = beta * (1 - before) / (1 - abar)
        posterior[0] = posterior[1]
        tables = {
            "a": abar.sqrt(),
            "s": (1 - abar).sqrt(),
            "from_x0": before.sqrt() * beta / (1 - abar),
            "from_xt": (1 - beta).sqrt() * (1 - before) / (1 - abar),
            "log_low": posterior.log(),
            "log_high": beta.log(),
        }
        self.tables = {name: table.float().to(device).view(-1, 1, 1, 1) for name, table in tables.items()}

    def __call__(self, model: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.randint(TRAIN_STEPS, (len(x0),), generator=generator).to(x0.device)
        at = {name: table[t] for name, table in self.tables.items()}
        eps = normal(x0, generator)
        x = at["a"] * x0 + at["s"] * eps
        eps_hat, v = model(x, timestep=t, class_labels=labels).sample.chunk(2, dim=1)
        simple = (eps_hat - eps).square().mean()
        log_var = torch.lerp(at["log_low"].expand_as(v), at["log_high"].expand_as(v), (v + 1) / 2)
        x0_hat = (x - at["s"] * eps_hat.detach()) / at["a"]
        gap = at["from_x0"] * (x0 - x0_hat)
        kl = 0.5 * (log_var - at["log_low"] + (at["log_low"] - log_var).exp() - 1 + gap.square() * (-log_var).exp())
        return simple + kl.mean() / math.log(2)


def train_transformer(
    out: Path, vae: Any, steps: int, batch: int, seed: int, device: torch.device
) -> tuple[nn.Module, dict, float]:
    torch.manual_seed(seed + 1)
    labels = training_images("train")[1].to(device)
    posteriors = [posterior for _, posterior in encode_all(vae, "train", device)]
    mean, std = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
    factor = 1 / (mean.var() + std.square().mean()).sqrt().item()
    model, loss = build_transformer().to(device), HybridLoss(device)

    def loss_of(generator: torch.Generator) -> Tensor:
        i = pick(generator, len(mean), batch, device)
        x0 = (mean[i] + std[i] * normal(mean[i], generator)) * factor
        drop = torch.rand(batch, generator=generator).to(device) < DROP_LABEL
        return loss(model, x0, labels[i].masked_fill(drop, NULL_LABEL), generator)

    cost = fit("dit", model, loss_of, out=out, steps=steps, peak=1e-3, seed=seed + 1, decay=0.999)
    return model, {**cost, "batch": batch}, factor


def export(vae: Any, transformer: Any, factor: float, cost: dict[str, Any], folder: Path) -> None:
    """Write the pipeline folder: fp16 safetensors, the scheduler of `facebook/DiT-XL-2-256`, class names and costs."""
    from diffusers import DDIMScheduler, DiTPipeline

    vae.register_to_config(scaling_factor=factor)
    scheduler: Any = DDIMScheduler(beta_start=BETAS[0], beta_end=BETAS[1], beta_schedule="linear", clip_sample=False)
    names: dict[int, str] = dict(enumerate(CLASS_NAMES))
    vae, transformer = (module.to("cpu", torch.float16) for module in (vae, transformer))
    pipe = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler, id2label=names)
    pipe.save_pretrained(folder, safe_serialization=True)
    describe(folder, PIPELINE, cost)


def describe(folder: Path, shipped: Path, cost: dict[str, Any]) -> None:
    """Write the class names, the card of the shipped folder and the costs into the folder of the weights."""
    (folder / "classes.json").write_text(json.dumps(list(CLASS_NAMES), indent=1) + "\n")
    (folder / "card.yaml").write_text((shipped / "card.yaml").read_text())
    (folder / "training.json").write_text(json.dumps(cost, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and, at the end, pipeline/")
    parser.add_argument("--vae-steps", type=int, default=1300)
    parser.add_argument("--decoder-steps", type=int, default=400)
    parser.add_argument("--dit-steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    vae, vae_cost = train_autoencoder(args.out, args.vae_steps, args.decoder_steps, args.batch, args.seed, device)
    print("autoencoder:", vae_cost)
    dit, dit_cost, factor = train_transformer(args.out, vae, args.dit_steps, args.batch, args.seed, device)
    cost = {"seed": args.seed, "device": str(device), "autoencoder": vae_cost, "transformer": dit_cost}
    export(vae, dit, factor, cost, args.out / "pipeline")
    print(json.dumps(cost, indent=1))


if __name__ == "__main__":
    main()
