"""Fine-tuning a denoiser on real latents: a short run of denoising score matching over chosen parameters.

The original backbone is never touched: `tuned` gives a copy of the denoiser that shares autoencoder and text encoders.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.dit import DiT
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import VariancePreserving
from dap.base.seeding import seed_of
from dap.base.store import Checkpoint

DROP = 0.1
"""Part of the conditions that are replaced by the null condition, so that classifier-free guidance stays possible."""


@dataclass(frozen=True)
class TuningBatch:
    """What one step is made on: clean latents (n, C, *spatial), conditions (n,), and which class each is of.

    `null` (n,) is what a dropped condition becomes; None: the backbone's own, which on a text-conditioned one is its negative
    prompt, and so none to tune on where that says something.
    """

    latents: Tensor
    condition: Tensor
    labels: Sequence[int]
    null: Tensor | None = None


@dataclass(frozen=True)
class Tuning:
    """How to fine-tune.

    Args:
        steps: of AdamW without weight decay.
        lr: its step size.
        seed: of times, noise and dropped conditions; each step has its own generator.
        ema: decay of the averaged weights, which are what is kept; 0 keeps the last ones.
        clip: the largest norm of a gradient, over all parameters; None for any.
    """

    steps: int
    lr: float
    seed: int
    ema: float = 0.9999
    clip: float | None = None


Extra = Callable[[Tensor, TuningBatch], Tensor]
"""A further loss of the predicted x_0 (n, C, *spatial)."""


def tuned(backbone: ModuleBackbone, scales: int = 0) -> ModuleBackbone:
    """A copy whose denoiser may be changed; everything else is shared.

    Args:
        backbone: the original.
        scales: of a DiT's first blocks, how many get DiffFit's factors (Xie et al., ICCV 2023) on the outputs of attention
            and of the feed-forward, a vector each that begins at 1.
    """
    shared = {id(part): part for name, part in backbone._parts.items() if name != "denoiser"}
    twin = copy.deepcopy(backbone, shared)
    if scales:
        assert isinstance(twin, DiT)
        for block in twin.transformer.transformer_blocks[:scales]:
            width = block.attn1.to_out[0].out_features
            for part in (block.attn1, block.ff):
                device, dtype = twin.device, twin.transformer.dtype
                part.register_parameter("factor", nn.Parameter(torch.ones(width, device=device, dtype=dtype)))
                part.register_forward_hook(_scaled)
    return twin


def _scaled(module: Any, given: Any, output: Tensor) -> Tensor:
    del given
    return output * module.factor


def light(backbone: ModuleBackbone) -> list[str]:
    """Names of the denoiser's parameters that DiffFit trains: biases, affine norms, class embeddings, and the factors."""
    chosen = []
    norms = (nn.LayerNorm, nn.GroupNorm)
    of_norms = {
        id(p) for module in backbone.denoiser.modules() if isinstance(module, norms) for p in module.parameters()
    }
    for name, parameter in backbone.denoiser.named_parameters():
        if name.endswith(("bias", "factor")) or "class_embedder" in name or id(parameter) in of_norms:
            chosen.append(name)
    return chosen


def fine_tune(
    twin: ModuleBackbone,
    names: Sequence[str],
    batch: Callable[[int], TuningBatch],
    tuning: Tuning,
    *,
    extra: Callable[[dict[str, Any]], Extra] | None = None,
    checkpoint: Checkpoint | None = None,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Train the named parameters of a `tuned` copy; returns their averaged values, which `load_tuned` puts into a copy.

    A killed run goes on from its checkpoint and gives the same bytes.

    Args:
        twin: a copy; it is changed.
        names: parameters of its denoiser.
        batch: step -> what it is made on; a function of the step alone.
        tuning: see there.
        extra: given a memory that is kept in the checkpoint ({} at first), returns a further loss.
        checkpoint: where it is kept.
        tell: told of the steps done, and of all.
    """
    parameters = {name: p for name, p in twin.denoiser.named_parameters() if name in set(names)}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters.values(), lr=tuning.lr, weight_decay=0.0)
    mean = {name: p.detach().clone() for name, p in parameters.items()}
    memory: dict[str, Any] = {}
    first = 0
    if checkpoint is not None and (state := checkpoint.read()) is not None:
        first = state["step"]
        optimiser.load_state_dict(state["optimiser"])
        memory.update(state["memory"])
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state["values"][name])
                mean[name].copy_(state["mean"][name])
    more = extra(memory) if extra else None
    loss_of = Denoising(twin)
    for step in range(first, tuning.steps):
        generator = torch.Generator().manual_seed(seed_of(tuning.seed, "finetune", step))
        given = batch(step)
        loss, x0 = loss_of(given, generator)
        if more is not None:
            loss = loss + more(x0, given)
        optimiser.zero_grad()
        loss.backward()
        if tuning.clip is not None:
            nn.utils.clip_grad_norm_(parameters.values(), tuning.clip)
        optimiser.step()
        with torch.no_grad():
            for name, parameter in parameters.items():
                # A short run would otherwise still be the beginning's average.
                decay = min(tuning.ema, (1 + step) / (10 + step)) if tuning.ema else 0.0
                mean[name].lerp_(parameter, 1 - decay)
        tell(step + 1, tuning.steps)
        if checkpoint is not None and checkpoint.due:
            values = {name: p.detach() for name, p in parameters.items()}
            written = {"step": step + 1, "optimiser": optimiser.state_dict(), "memory": memory}
            checkpoint.write({**written, "values": values, "mean": mean})
    twin.denoiser.requires_grad_(False)
    return mean


@torch.no_grad()
def load_tuned(twin: ModuleBackbone, values: Mapping[str, Tensor]) -> ModuleBackbone:
    """Put what `fine_tune` returned into a copy of the same kind."""
    parameters = dict(twin.denoiser.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)
    return twin


class Denoising:
    r"""||eps - eps_hat||^2 + KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) of a learned variance, as DiT is trained.

    The second term, in bits, trains the variance alone (Nichol & Dhariwal 2021); at the last step, where they take the
    likelihood of pixels, it is the same divergence with the variance of the step before.

    Args:
        backbone: one that predicts noise, with a variance-preserving schedule.
    """

    def __init__(self, backbone: ModuleBackbone) -> None:
        schedule = backbone.schedule
        assert isinstance(schedule, VariancePreserving)
        self.backbone = backbone
        self.abar = schedule.alphas_cumprod.double().to(backbone.device)
        before = torch.cat([self.abar.new_ones(1), self.abar[:-1]])
        self.beta = 1 - self.abar / before
        self.of_x0 = self.beta * before.sqrt() / (1 - self.abar)
        variance = self.beta * (1 - before) / (1 - self.abar)
        variance[0] = variance[1]
        self.low, self.high = variance.log(), self.beta.log()

    def __call__(self, batch: TuningBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The loss and the predicted x_0 of a batch at random times."""
        x0, n = batch.latents, len(batch.latents)
        t = torch.randint(len(self.abar), (n,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        dropped = torch.rand(n, generator=generator) < DROP
        t, dropped = t.to(x0.device), dropped.to(x0.device)

        def at(values: Tensor) -> Tensor:
            return values[t].float().view(n, *[1] * (x0.ndim - 1))

        alpha, sigma = at(self.abar.sqrt()), at((1 - self.abar).sqrt())
        x = alpha * x0 + sigma * noise
        condition = torch.where(dropped, self.backbone.null(n) if batch.null is None else batch.null, batch.condition)
        # A prediction of noise is read alike at every time.
        found = self.backbone.read(x, 0, self.backbone.run(x, t, condition))
        loss = (noise - found.eps).square().mean()
        predicted = (x - sigma * found.eps) / alpha
        if found.variance is not None:
            part = (found.variance + 1) / 2
            log_var = part * at(self.high) + (1 - part) * at(self.low)
            gap = at(self.of_x0) * (x0 - predicted.detach())
            ratio = at(self.low) - log_var
            kl = 0.5 * (-1 - ratio + ratio.exp() + gap.square() * (-log_var).exp())
            loss = loss + kl.mean() / math.log(2)
        return loss, predicted
