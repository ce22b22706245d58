"""Train the second starter from nothing: `python -m dap.starter.unet --out DIR`.

The second starter is a small Stable Diffusion. It has a `UNet2DConditionModel` on the latents of the first starter's
autoencoder, and a CLIP text encoder. Both are trained together on prompts such as "a photo of a dress". One prompt in
ten is empty, because classifier-free guidance needs this. The schedule is Stable Diffusion's. The result is an ordinary
diffusers `StableDiffusionPipeline` folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dap.starter import CLASS_NAMES, PIPELINE, UNET_PIPELINE
from dap.starter.images import training_images
from dap.starter.train import DROP_LABEL, describe, encode_all, fit, normal, pick

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""The noise schedule of Stable Diffusion 1 and 2."""

TEMPLATES = ("a photo of a {}", "a {}", "{}")
PROMPT_TOKENS = 16
WIDTH = 64


def build_tokenizer(tokens: int = PROMPT_TOKENS) -> Any:
    """A CLIP tokenizer. Its vocabulary has the words of our prompts, and all single bytes, so that it can spell any
    text."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    words = sorted({word for text in (*TEMPLATES, *CLASS_NAMES) for word in text.lower().replace("-", " ").split()})
    letters = sorted(ByteLevel.alphabet())
    pieces, merges = [*letters, *(letter + "</w>" for letter in letters)], []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        if not word.isalpha():
            continue
        while len(parts) > 1:  # left to right: p h o t o -> ph o t o -> pho t o -> …
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens)


def build_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> Any:
    from diffusers import UNet2DConditionModel

    build: Any = UNet2DConditionModel  # its annotations say one-element tuples
    return build(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 5),  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def prompt_ids(tokenizer: Any, device: torch.device) -> Tensor:
    """Token ids (1 + classes · templates, tokens): first the empty prompt, then for each class its prompt by each
    template."""
    prompts = ["", *(template.format(name) for name in CLASS_NAMES for template in TEMPLATES)]
    encoded = tokenizer(prompts, padding="max_length", truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt")
    return encoded.input_ids.to(device)


def train(out: Path, vae: Any, steps: int, batch: int, seed: int, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Train the U-Net and the text encoder. Returns both with the tokenizer, and the cost of the training."""
    torch.manual_seed(seed)
    labels = training_images("train")[1].to(device)
    posteriors = [posterior for _, posterior in encode_all(vae, "train", device)]
    mean, std = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
    tokenizer = build_tokenizer()
    parts = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)}).to(device)
    ids, factor = prompt_ids(tokenizer, device), vae.config.scaling_factor
    beta = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, SCHEDULE["num_train_timesteps"])
    abar = (1 - beta.double().square()).cumprod(0).float().to(device)

    def loss_of(generator: torch.Generator) -> Tensor:
        i = pick(generator, len(mean), batch, device)
        x0 = (mean[i] + std[i] * normal(mean[i], generator)) * factor
        which = 1 + labels[i] * len(TEMPLATES) + pick(generator, len(TEMPLATES), batch, device)
        drop = torch.rand(batch, generator=generator).to(device) < DROP_LABEL
        context = parts["text_encoder"](ids).last_hidden_state[which.masked_fill(drop, 0)]
        t = pick(generator, len(abar), batch, device)
        a, eps = abar[t].view(-1, 1, 1, 1), normal(x0, generator)
        guess = parts["unet"](a.sqrt() * x0 + (1 - a).sqrt() * eps, t, context).sample
        return (guess - eps).square().mean()

    cost = fit("unet", parts, loss_of, out=out, steps=steps, peak=1e-3, seed=seed, decay=0.999)
    return (parts["unet"], parts["text_encoder"], tokenizer), {**cost, "batch": batch}


def export(vae: Any, trained: tuple[Any, Any, Any], cost: dict[str, Any], folder: Path) -> None:
    """Write the pipeline folder: fp16 safetensors, Stable Diffusion's scheduler, class names, card and costs."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    unet, text_encoder, tokenizer = trained
    build: Any = PNDMScheduler
    pipe = StableDiffusionPipeline(
        vae=vae.to("cpu", torch.float16),
        unet=unet.to("cpu", torch.float16),
        text_encoder=text_encoder.to("cpu", torch.float16),
        tokenizer=tokenizer,
        scheduler=build(**SCHEDULE, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "vae" / "config.json").read_text())
    config.pop("_name_or_path", None)  # the path of the model on this machine
    (folder / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    describe(folder, UNET_PIPELINE, cost)


def main() -> None:
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and, at the end, pipeline/")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    vae: Any = AutoencoderKL.from_pretrained(PIPELINE / "vae", dtype=torch.float32)
    trained, cost = train(args.out, vae.to(device).eval(), args.steps, args.batch, args.seed, device)
    cost = {"seed": args.seed, "device": str(device), "unet and text encoder": cost}
    export(vae, trained, cost, args.out / "pipeline")
    print(json.dumps(cost, indent=1))


if __name__ == "__main__":
    main()
