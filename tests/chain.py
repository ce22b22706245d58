"""The ancestral chain of a tiny DiT written from the equations in float64: what the sampler is held against."""

from __future__ import annotations

import torch

from dap.base.seeding import generators


def chain(backbone, batch, cfg, steps, push=None):
    """The latents (2, 4, 4, 4), float64, after respaced steps with learned-range variance and guidance on 3 of 4 channels.

    Args:
        backbone: a DiT of four latent channels whose null label is 3; its labels "red" and "blue" are 0 and 2.
        batch: one image of either, in that order.
        cfg: classifier-free guidance.
        steps: of the chain.
        push: the respaced step (steps - 1 … 0), its standard deviation and x0_hat -> what to add to its mean; default: nothing.
    """
    model = backbone.transformer.double()
    try:
        labels, null = torch.tensor([0, 2]), torch.tensor([3, 3])
        abar = torch.cat([(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0), torch.ones(1)])
        gens = generators(batch.seeds)

        def noise():
            return torch.stack([torch.randn(4, 4, 4, generator=g) for g in gens]).double()

        x = noise()
        ts = [round(i * 999 / (steps - 1)) for i in range(steps)]
        for i in reversed(range(steps)):
            t, before = ts[i], ts[i - 1] if i else -1
            with torch.no_grad():
                full = torch.full((2,), t)
                cond = model(x, timestep=full, class_labels=labels).sample
                free = model(x, timestep=full, class_labels=null).sample
            eps = cond[:, :4].clone()
            eps[:, :3] = free[:, :3] + cfg * (cond[:, :3] - free[:, :3])
            a, b = abar[t], abar[before]
            beta = 1 - a / b
            x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
            x = b.sqrt() * beta / (1 - a) * x0 + (a / b).sqrt() * (1 - b) / (1 - a) * x
            if i > 0:
                low, high = (beta * (1 - b) / (1 - a)).log(), beta.log()
                sigma = (0.5 * (low + (cond[:, 4:] + 1) / 2 * (high - low))).exp()
                x = x + (0 if push is None else push(i, sigma, x0)) + sigma * noise()
        return x
    finally:
        backbone.transformer.float()
