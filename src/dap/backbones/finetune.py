"""Fine-tuning a denoiser on real latents: a short run of denoising score matching over chosen parameters.

The original backbone is never touched: `tuned` gives a copy of the denoiser that shares the autoencoder and the text encoders
with the original.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dap.backbones.kinds.dit import DiT
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import VariancePreserving
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Checkpoint

DROP = 0.1
"""The fraction of conditions that the null condition replaces, so that classifier-free guidance stays possible."""


@dataclass(frozen=True)
class TuningBatch:
    """The data of one training step."""

    latents: Tensor
    """Clean latents (n, C, *spatial)."""
    condition: Tensor
    """(n,), the condition of each latent, as `Backbone.condition` gives it."""
    labels: Sequence[int]
    """The label of each latent."""
    null: Tensor | None = None
    """(n,), the conditions that replace dropped conditions. None: the null condition of the backbone. On a text-conditioned
    backbone this is the negative prompt. It serves for tuning only if it is empty."""


@dataclass(frozen=True)
class Tuning:
    """The choices for a fine-tuning.

    Args:
        steps: the number of steps of AdamW without weight decay.
        lr: the learning rate.
        seed: the seed that decides times, noise and dropped conditions. Each step has its own generator.
        ema: the decay of the moving average of the weights. The average is the result. 0 keeps the last weights.
        clip: the largest norm of a gradient, over all parameters. None does not clip.
    """

    steps: int
    lr: float
    seed: int
    ema: float = 0.9999
    clip: float | None = None


FEW = 8
"""Weights whose card asks for so many steps, or fewer, were distilled to few steps."""

Extra = Callable[[Tensor, TuningBatch], Tensor]
"""One more loss: a function of the predicted x_0 (n, C, *spatial) and of the batch that returns a scalar."""


class MovingAverage:
    """The exponential moving average of named parameters, whose decay grows with the steps.

    After step k, counted from 0, the decay is min(`decay`, (1 + k) / (10 + k)). With a constant decay, the average of a
    short run would still be the weights of its beginning.

    The `EMAModel` of diffusers has the same formula. But its first step has decay 0 instead of 1/10, and it rounds in
    another way (s - w (s - p) instead of `lerp`). With it the bytes of the Minimax method would change, so this class
    stays.

    Args:
        parameters: the parameters at the start, by name.
        decay: the largest decay; 0 makes the average equal to the last weights.

    Attributes:
        values: the average, by name.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], decay: float) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Add the parameters after a step to the average. Steps are counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters:
            self.values[name].lerp_(parameter, 1 - decay)


def tuned(backbone: ModuleBackbone, scales: int = 0) -> ModuleBackbone:
    """A copy of a backbone whose denoiser may be changed. The copy and the original share all other modules.

    The blocks of a DiT in the copy share the values of the label table and of the time embedder, if these are equal in all
    blocks. See `tie`.

    Args:
        backbone: the original.
        scales: how many of a DiT's first blocks get the factors of DiffFit (Xie et al., ICCV 2023), all 1 at the start. As in
            Minimax's code these are, in each block: one for each output of the query, key and value layers, one for each
            output of the layer after attention, one for each width of what attention adds, and one for each width of what
            the feed-forward adds.
    """
    shared = {id(part): part for name, part in backbone._parts.items() if name != "denoiser"}
    if backbone.offloaded:
        raise DapError(
            f"{backbone.card.name} cannot be fine-tuned while parts of it are offloaded; leave out --offload."
        )
    twin = copy.deepcopy(backbone, shared)
    if isinstance(twin, DiT):
        tie(twin)
    if scales:
        assert isinstance(twin, DiT)
        for block in twin.transformer.transformer_blocks[:scales]:
            attention = block.attn1
            width = attention.to_out[0].out_features
            inner = {part: part.out_features for part in (attention.to_q, attention.to_k, attention.to_v)}
            for part, size in {**inner, attention.to_out[0]: width, attention: width, block.ff: width}.items():
                device, dtype = twin.device, twin.transformer.dtype
                part.register_parameter("factor", nn.Parameter(torch.ones(size, device=device, dtype=dtype)))
                part.register_forward_hook(_scaled)
    return twin


def tie(backbone: DiT) -> None:
    """Let all blocks of a DiT share one label table and one time embedder, parameter by parameter.

    The original DiT has one of each. diffusers gives each block copies of its own, which training would draw apart. A
    parameter that differs between blocks, as in a DiT that was trained in diffusers, stays each block's own.
    """
    first, *others = (block.norm1.emb for block in backbone.transformer.transformer_blocks)
    for name, parameter in first.named_parameters():
        if all(torch.equal(parameter, other.get_parameter(name)) for other in others):
            owner, _, last = name.rpartition(".")
            for other in others:
                setattr(other.get_submodule(owner), last, parameter)


def _scaled(module: Any, given: Any, output: Tensor) -> Tensor:
    del given
    return output * module.factor


@torch.no_grad()
def drawn_latents(
    backbone: ModuleBackbone, images: Float[Tensor, "n 3 *size"], generator: torch.Generator
) -> Float[Tensor, "n c *spatial"]:
    """Latents drawn from the autoencoder's distribution of each image, see `ModuleBackbone.drawn`."""
    return backbone.drawn(images, generator)


def light(backbone: ModuleBackbone) -> list[str]:
    """Names of the denoiser's parameters that DiffFit trains: biases, affine norms, class embeddings, and its factors."""
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
    """Train the named parameters of a `tuned` copy. `load_tuned` puts the result into a copy.

    A killed run continues from its checkpoint and gives the same bytes.

    Args:
        twin: the copy. It is changed.
        names: the names of the parameters of its denoiser that are trained.
        batch: gives the data of a step. The data must depend on the step alone.
        tuning: the choices for the fine-tuning.
        extra: makes one more loss. Its argument is a memory, {} at first, that is kept in the checkpoint.
        checkpoint: keeps an unfinished run. None keeps nothing.
        tell: is called with the number of steps that are done and the number of all steps.

    Returns:
        The averaged values of the parameters, by name.
    """
    parameters = {name: p for name, p in twin.denoiser.named_parameters() if name in set(names)}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters.values(), lr=tuning.lr, weight_decay=0.0)
    average = MovingAverage(parameters.items(), tuning.ema)
    memory: dict[str, Any] = {}
    first = 0
    if checkpoint is not None and (state := checkpoint.read()) is not None:
        first = state["step"]
        optimiser.load_state_dict(state["optimiser"])
        memory.update(state["memory"])
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state["values"][name])
                average.values[name].copy_(state["mean"][name])
    more = extra(memory) if extra else None
    loss_of = Denoising(twin)
    for step in range(first, tuning.steps):
        generator = torch.Generator().manual_seed(seed_of(tuning.seed, "finetune", step))
        given = batch(step)
        loss, x0 = loss_of(given, generator)
        if more is not None:
            loss = loss + more(x0, given)
        if not torch.isfinite(loss):
            raise DapError(
                f"The loss of the fine-tuning is {loss.item()} at step {step + 1} of {tuning.steps}, so it diverged; lower its "
                "learning rate among the options of the method, or use --dtype float32."
            )
        optimiser.zero_grad()
        loss.backward()
        if tuning.clip is not None:
            nn.utils.clip_grad_norm_(parameters.values(), tuning.clip)
        optimiser.step()
        average.update(parameters.items(), step)
        tell(step + 1, tuning.steps)
        if checkpoint is not None and checkpoint.due:
            values = {name: p.detach() for name, p in parameters.items()}
            written = {"step": step + 1, "optimiser": optimiser.state_dict(), "memory": memory}
            checkpoint.write({**written, "values": values, "mean": average.values})
    twin.denoiser.requires_grad_(False)
    return average.values


@torch.no_grad()
def load_tuned(twin: ModuleBackbone, values: Mapping[str, Tensor]) -> ModuleBackbone:
    """Put the values that `fine_tune` returned into a copy of the same kind."""
    parameters = dict(twin.denoiser.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)
    return twin


def check_predicts_noise(backbone: ModuleBackbone, what: str, otherwise: str = "") -> None:
    """Check that a backbone can be trained as `Denoising` trains it, before any work.

    Args:
        backbone: the backbone.
        what: what wants to train it, the subject of the message, such as "Minimax".
        otherwise: what a user can do instead, the end of the message.

    Raises:
        DapError: the backbone predicts something else than noise, or it was distilled to few steps, which this training would
            undo.
    """
    card = backbone.card
    if backbone.predicts != "eps" or not isinstance(backbone.schedule, VariancePreserving):
        raise DapError(
            f"{what} trains only backbones that predict noise, and {card.name} does not; take another backbone{otherwise}."
        )
    if card.solver == "lcm" or card.guidance is not None or (card.steps or FEW + 1) <= FEW:
        raise DapError(
            f"{card.name} was distilled to few steps, and {what} would undo that; take the backbone that it was distilled "
            f"from{otherwise}."
        )


class Denoising:
    r"""||eps - eps_hat||^2 + KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) of a learned variance, as DiT is trained.

    The second term, in bits, trains the variance alone (Nichol & Dhariwal 2021). At the last step the paper takes the likelihood
    of the pixels; here it is the same divergence, with the variance of the step before.

    Args:
        backbone: a backbone that `check_predicts_noise` lets pass.
    """

    def __init__(self, backbone: ModuleBackbone) -> None:
        schedule = backbone.schedule
        assert isinstance(schedule, VariancePreserving) and backbone.predicts == "eps"
        self.backbone = backbone
        self.abar = schedule.alphas_cumprod.double()
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
        dropped = (torch.rand(n, generator=generator) < DROP).to(x0.device)

        def at(values: Tensor) -> Tensor:
            return values[t].float().to(x0.device).view(n, *[1] * (x0.ndim - 1))

        alpha, sigma = at(self.abar.sqrt()), at((1 - self.abar).sqrt())
        x = alpha * x0 + sigma * noise
        condition = torch.where(dropped, self.backbone.null(n) if batch.null is None else batch.null, batch.condition)
        # `read` treats a prediction of noise in the same way at every time, so the time 0 serves for all.
        found = self.backbone.read(x, 0, self.backbone.run(x, t.to(x0.device), condition))
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
