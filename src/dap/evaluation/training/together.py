"""Several seeds of one network in one training: their weights are stacked, and one pass serves all of them.

On a GPU a small network on a small set keeps the device waiting for launches, and k networks then cost little more than
one; how much is gained there has not been measured. On a CPU grouped convolutions made it 2 to 5 times slower than one
network after another, so it is never done unless asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dap.base.errors import DapError
from dap.evaluation.training.batches import Images
from dap.evaluation.training.fitting import Training, TrainingBatch
from dap.evaluation.training.layers import InstanceNorm
from dap.evaluation.training.protocol import Protocol


class Stack(nn.Module):
    """Networks of one architecture as one module, by `torch.func.vmap` over stacked parameters.

    The parameters of the networks become views of the stacked ones, so that each may be used by itself at any time.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        shared = copy.deepcopy(nets[0]).train()
        for part in shared.modules():
            if isinstance(part, InstanceNorm):
                part.own = False
        names = [name for name, _ in nets[0].named_parameters()]
        self.stacked = nn.ParameterList()
        for own in zip(*(net.parameters() for net in nets), strict=True):
            whole = nn.Parameter(torch.stack([p.detach() for p in own]), requires_grad=own[0].requires_grad)
            self.stacked.append(whole)
            for k, p in enumerate(own):
                p.data = whole.data[k]

        def logits(parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
            return functional_call(shared, dict(zip(names, parameters, strict=True)), (images,))

        self._logits = vmap(logits, in_dims=(0, 1), out_dims=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, networks, classes) of images (n, networks, c, h, w), in training mode."""
        return self._logits(tuple(self.stacked), images)


class Together(Training):
    """One training a seed, all at once. Each draws its start, order and augmentation from its own generators, so that it
    comes to what it comes to by itself, up to rounding.
    """

    leading: ClassVar[int] = 1

    def __init__(self, train: Images, protocol: Protocol, seeds: Sequence[int], **options: Any) -> None:
        """
        Args:
            train, protocol: as of `Training`.
            seeds: one network each.
            options: the keywords of `Training`.

        Raises:
            DapError: the network cannot be trained so; see `why_alone`.
        """
        # The extra pass only moves running statistics, of which there are none here.
        protocol = protocol.model_copy(update={"extra_forward": False})
        super().__init__(train, protocol, seeds[0], **options)
        self.seeds = tuple(seeds)
        if reason := why_alone(self.net, options["channels"], protocol.size):
            raise DapError(f"{self.network} cannot be trained several at once: {reason}.")
        self.members = [Training(train, protocol, seed, **options) for seed in seeds]
        self.nets = tuple(member.net for member in self.members)
        self.net = Stack(self.nets).to(self.device)
        self.optimiser = self._new_optimiser(protocol.lr)

    def _named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        if not isinstance(self.net, Stack):
            return super()._named_parameters()
        return zip((name for name, _ in self.nets[0].named_parameters()), self.net.stacked, strict=True)

    def state(self) -> dict[str, Any]:
        states = [(member.order.get_state(), member.augment.get_state()) for member in self.members]
        order, augment = (torch.stack(each) for each in zip(*states, strict=True))
        return {**super().state(), "order": order, "augment": augment}

    def restore(self, state: dict[str, Any]) -> None:
        states = [[one.clone() for one in state[name]] for name in ("order", "augment")]  # no generator takes a view
        super().restore({**state, "order": states[0][0], "augment": states[1][0]})
        for member, order, augment in zip(self.members, *states, strict=True):
            member.order.set_state(order)
            member.augment.set_state(augment)

    def _logits(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _batches(self, epoch: int) -> Iterator[TrainingBatch]:
        for batches in zip(*(member._batches(epoch) for member in self.members), strict=True):
            losses = [loss_of for _, loss_of in batches]

            def of_all(logits: Tensor, part: slice, losses: list[Any] = losses) -> Tensor:
                return torch.stack([of(own, part) for of, own in zip(losses, logits.unbind(1), strict=True)])

            yield torch.stack([x for x, _ in batches], 1), of_all


def why_alone(net: nn.Module, channels: int, size: int) -> str | None:
    """Why networks like this one cannot be trained together, in words; None if they can.

    They cannot if they keep running statistics or other buffers, draw random numbers, or do what `torch.func.vmap` does not
    know, which is tried on black images (channels, size, size).
    """
    if any(True for _ in net.buffers()):
        return "it keeps buffers, such as the statistics of a batch norm"
    images = next(net.parameters()).new_zeros(2, 2, channels, size, size)
    try:
        with torch.no_grad():
            Stack([copy.deepcopy(net) for _ in range(2)])(images)
    except Exception as error:  # of whatever kind, since a network may be anybody's
        said = str(error).partition("\n")[0].partition(". ")[0]
        return f"it draws random numbers or is not for torch.func.vmap ({type(error).__name__}: {said})"
    return None
