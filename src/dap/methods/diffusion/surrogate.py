"""The surrogate network of IGD, which is trained on the real data, and the options of the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.data.real.stored.gathering import gathered
from dap.data.real.stored.streams import Stored
from dap.evaluation.training.batches import Images, gpu_room, rows_of, slice_size
from dap.evaluation.training.fitting import Training, new_network, run_with_checkpoint, seeded
from dap.evaluation.training.networks import check_width
from dap.evaluation.training.protocol import Protocol, load_protocol
from dap.evaluation.training.transforms import run, split
from dap.guidance.influence import Compared, Moment, Through, flat_gradient
from dap.methods.base import Options, Task

STORED = 4 * 2**30
"""How many bytes the gradients of all classes may have that are kept on disk, so that run seeds share them."""


class IgdOptions(Options, frozen=True):
    """Options of the two guidances and of the surrogate network."""

    influence: float = Field(
        default=5.0,
        ge=0,
        description="Strength k of the influence guidance; the paper has 5. With 0 there is none, and no surrogate "
        "network is trained.",
    )
    deviation: float = Field(
        default=120.0,
        ge=0,
        description="Strength gamma of the deviation guidance, which keeps images apart; the paper has 120. With 0 there "
        "is none.",
    )
    apart: Compared = Field(
        default="x",
        description="What the deviation guidance keeps apart. x: the noisy sample x_t. denoiser, x0: the predicted clean "
        "sample "
        "x0_hat, with the gradient that `through` names.",
    )
    start: float = Field(default=0.08, ge=0, le=1, description="Guide from this fraction of the run on.")
    stop: float = Field(default=0.4, ge=0, le=1, description="Guide until this fraction of the run.")
    memory: int = Field(
        default=64,
        ge=1,
        description="How many earlier images of the class a new image is kept apart from; the paper has 64.",
    )
    through: Through = Field(
        default="denoiser",
        description="How the gradient reaches x_t. denoiser: through the whole noise prediction. x0: as if the predicted clean "
        "sample moved with x_t one to one.",
    )
    network: str = Field(
        default="auto", description="The surrogate network. auto: convnet3 below 128 px, convnet6 from there on."
    )
    width: int = Field(default=128, ge=1, description="Channels of the surrogate, if it is a ConvNet.")
    images: int = Field(default=200, ge=1, description="Real images of each class that the surrogate is trained on.")
    epochs: int = Field(default=10, ge=1, description="Training epochs of the surrogate; the paper has 50.")
    batch: int = Field(default=64, ge=1, description="Batch size of the surrogate's training.")
    lr: float = Field(default=0.01, gt=0, description="Learning rate of the surrogate's training.")
    augment: bool = Field(
        default=True,
        description="Augment the surrogate's training as Minimax augments its evaluation: random crops, mirroring, colours "
        "and lighting. Without mixing, as in the authors' scripts.",
    )
    flip: bool = Field(
        default=True,
        description="Mirror half of the images in this augmentation; switch it off for digits and letters.",
    )
    threshold: float = Field(
        default=0.7,
        ge=-1,
        le=1,
        description="A state of the surrogate is kept when the mean cosine between the class gradients in it and in the "
        "last kept "
        "state is below this; the paper has 0.7.",
    )
    compared: int = Field(
        default=32, ge=1, description="Real images of each class whose gradients are compared for that choice."
    )
    gradients: int = Field(
        default=200,
        ge=1,
        description="Real images of each class whose mean gradient the samples follow; the paper has 200.",
    )
    surrogate_seed: int = Field(
        default=0, ge=0, description="Seed of the surrogate's training; sets of all run seeds share one surrogate."
    )

    @model_validator(mode="after")
    def _wide(self) -> Self:
        if self.width != type(self).model_fields["width"].default:
            check_width([self.network])
        return self


class Surrogate:
    """States of a network during its training on the real images, and the mean gradient of each class in each state.

    The task's store keeps the states and the gradients. All random numbers come from `surrogate_seed`, so sets of all
    run seeds share the surrogate.

    Args:
        task: the task, whose backbone can decode with a graph.
        options: the options of the surrogate.

    Raises:
        DapError: the network has an unknown name, there are fewer than 2 classes, the backbone cannot carry a
            gradient through its decoder, or its denoiser leaves the device meanwhile.
    """

    def __init__(self, task: Task, options: IgdOptions) -> None:
        self.task, self.backbone, self.options, self.source = task, task.backbone, options, task.source
        self.device, self.classes = self.backbone.device, len(self.source.class_names)
        if type(self.backbone).decode_with_graph is Backbone.decode_with_graph:
            raise DapError(
                f"The influence guidance looks at pixels, but {self.backbone.card.name} cannot carry a gradient through its "
                "decoder; give it decode_with_graph, or take --option influence=0."
            )
        if self.classes < 2:
            raise DapError(
                "The surrogate of IGD is a classifier and needs at least 2 classes; give more, or take --option influence=0."
            )
        if options.through == "denoiser" and getattr(self.backbone, "offloaded", "") == "model":
            raise DapError(
                "The influence guidance goes backward through the denoiser and the autoencoder at once. --offload model takes "
                "the denoiser off the GPU before that. Use --offload sequential or none, or --option through=x0."
            )
        self.protocol = _protocol(options, self.source.size)
        self._scratch = self._network()
        self._networks: list[nn.Module] = []
        self._real: dict[int, Tensor] = {}

    def begin(self, labels: Sequence[int]) -> None:
        """Load the surrogate and the gradients of these labels from the store, or compute them if the store lacks them.

        The gradients of all other labels are removed from memory.
        """
        if not self._networks:
            kept = self.task.store.get("surrogate", self._key(), self._train)
            for at in range(len(kept["epochs"])):
                state = {name: kept[f"{at}.{name}"] for name in self._scratch.state_dict()}
                self._networks.append(self._loaded(self._network(), state))
        self._real = {label: real for label, real in self._real.items() if label in labels}
        for label in labels:
            if label not in self._real:
                name = self.source.class_names[label]
                key = self._key() | {"class": name, "gradients": self.options.gradients}
                find = partial(self._gradients, label)
                numbers = sum(value.numel() for value in self._scratch.parameters())
                # What all classes need must fit on the disk; else each class is computed when its images are made.
                kept = 4 * numbers * len(self._networks) * self.classes <= STORED
                found = self.task.store.get(f"gradients of {name}", key, find) if kept else find()
                self._real[label] = found["x"].to(self.device)

    def images(self, latents: Tensor) -> Tensor:
        """See `guidance.influence.Trajectory`."""
        return self.backbone.decode_with_graph(latents)

    def moments(self, label: int) -> list[Moment]:
        """See `guidance.influence.Trajectory`."""

        def loss_in(network: nn.Module) -> Callable[[Tensor], Tensor]:
            return lambda images: self._loss(network, run(self.protocol.test_steps, images), label)

        pairs = zip(self._networks, self._real[label], strict=True)
        return [Moment(tuple(network.parameters()), loss_in(network), real) for network, real in pairs]

    def _key(self) -> dict[str, Any]:
        wanted = {"network", "width", "images", "epochs", "batch", "lr", "threshold", "compared", "surrogate_seed"}
        kept = self.options.model_dump(include=wanted | {"augment", "flip"})
        return {"form": 2, **kept}  # the form counts changes of the training

    def _train(self) -> dict[str, Tensor]:
        store, seed, epochs = self.task.store, self.options.surrogate_seed, self.options.epochs
        images, labels, starts = self._all_reals(self.options.images)
        fixed, budget = split(self.protocol.train_steps)[0], self.task.allowed
        train = Images((images, labels), fixed, self.device, keep=budget.memory // 4, room=gpu_room(self.device))
        training = Training(train, self.protocol, seed, network=self.protocol.network, channels=3, classes=self.classes)
        notes: dict[str, Any] = {"epochs": [0], "kept": [_copied(training.net)]}
        last: dict[int, list[Tensor]] = {}
        numbers = sum(value.numel() for value in training.net.parameters())
        held = (
            8 * numbers * self.classes <= budget.memory // 4
        )  # else the gradients of the last kept state are taken again

        def gradient(network: nn.Module, label: int) -> Tensor:
            rows = torch.arange(starts[label], min(starts[label] + self.options.compared, starts[label + 1]))
            return self._gradient(network, run(self.protocol.test_steps, rows_of(images, rows).to(self.device)), label)

        def after(epoch: int, network: nn.Module) -> None:
            before = notes["epochs"][-1]
            network.eval()
            if before not in last:
                last.clear()
                earlier = self._loaded(self._scratch, notes["kept"][-1])
                if held:
                    last[before] = [gradient(earlier, label) for label in range(self.classes)]
            now, cosines = list[Tensor](), list[Tensor]()
            for label in range(self.classes):
                one = gradient(network, label)
                first = last[before][label] if held else gradient(self._scratch, label)
                cosines.append(F.cosine_similarity(first, one, dim=0))
                now += [one] if held else []
            if float(torch.stack(cosines).mean()) < self.options.threshold:
                notes["epochs"].append(epoch)
                notes["kept"].append(_copied(network))
                if held:
                    last[epoch] = now
            self.task.tell("surrogate: epochs", epoch, epochs)

        checkpoint = store.checkpoint("surrogate", self._key())
        run_with_checkpoint(training, checkpoint, after, notes)
        store.discard(checkpoint)
        kept = {f"{at}.{name}": value for at, state in enumerate(notes["kept"]) for name, value in state.items()}
        return {"epochs": torch.tensor(notes["epochs"]), **kept}

    def _gradients(self, label: int) -> dict[str, Tensor]:
        """The class's mean gradient in each kept state of the network: "x" (states, P)."""
        images = self._seen(self._reals(label, self.options.gradients))
        return {"x": torch.stack([self._gradient(network, images, label) for network in self._networks])}

    def _gradient(self, network: nn.Module, images: Tensor, label: int) -> Tensor:
        """The gradient (P,) of the mean loss of images, which are transformed already as the network sees them."""
        parameters = tuple(network.parameters())
        height, width = images.shape[2:]
        size = slice_size(height, width, self.device)
        with torch.enable_grad():
            parts = [
                flat_gradient(self._loss(network, part, label) * len(part), parameters) for part in images.split(size)
            ]
        return torch.stack(parts).sum(0) / len(images)

    @staticmethod
    def _loss(network: nn.Module, seen: Tensor, label: int) -> Tensor:
        logits = network(seen.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), torch.full((len(seen),), label, device=seen.device))

    def _all_reals(self, n: int) -> tuple[Stored, Tensor, list[int]]:
        """The images of `_reals` of all classes, which need not fit into memory, their labels, and where each class begins."""
        places = [(label, index) for label in range(self.classes) for index in self._drawn(label, n)]

        def broken(row: int, reason: str) -> None:
            self.source.met(*places[row], reason, planned=len(places))

        def read(row: int) -> Tensor:
            return self.source.decoded(*places[row])

        found = gathered(read, len(places), self.source.size, self.task.allowed, broken=broken)
        labels = torch.tensor([places[row][0] for row in found.rows.tolist()])
        counts = labels.bincount(minlength=self.classes).tolist()
        for label, left in enumerate(counts):
            if not left:
                self.source.refuse_broken(label)
        return found.images, labels, list(accumulate(counts, initial=0))

    def _drawn(self, label: int, n: int) -> list[int]:
        name = self.source.class_names[label]
        generator = torch.Generator().manual_seed(seed_of(self.options.surrogate_seed, name, "surrogate"))
        return torch.randperm(self.source.count(label), generator=generator)[:n].tolist()

    def _reals(self, label: int, n: int) -> Tensor:
        """The first n images of the class's seeded order, without those that cannot be decoded, uint8 (m, 3, h, w)."""
        name, drawn = self.source.class_names[label], self._drawn(label, n)
        _, images = self.source.readable(label, drawn)
        if not len(images):
            raise DapError(f"None of {len(drawn)} real images of class {name!r} can be decoded; repair them.")
        return (images * 255).round().byte()

    def _seen(self, images: Tensor) -> Tensor:
        """Real images as the network sees them: after the protocol's test steps."""
        return run(self.protocol.test_steps, images.to(self.device).float() / 255)

    def _network(self) -> nn.Module:
        with seeded(0, torch.device("cpu")):
            return new_network(self.protocol.network, self.protocol, 3, self.classes)

    def _loaded(self, network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        network.load_state_dict(state)
        return network.eval().to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _protocol(options: IgdOptions, size: int) -> Protocol:
    """The surrogate's training: hard labels, a constant learning rate, and Minimax's augmentation without mixing."""
    network = options.network if options.network != "auto" else "convnet6" if size >= 128 else "convnet3"
    train: list[dict[str, Any]] = [{"op": "resize"}]
    if options.augment:
        # As in the protocol minimax-hard.
        jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
        train += [{"op": "center_crop"}, {"op": "random_resized_crop", "scale": [0.5, 1]}]
        train += [{"op": "flip", "p": 0.5}] if options.flip else []
        train += [{"op": "color_jitter", **jitter}, {"op": "lighting", "std": 0.1}]
    return load_protocol(
        "reference",
        network=network,
        size=size,
        width=options.width,
        mean=(0.5,),
        std=(0.5,),
        train=[*train, {"op": "normalize"}],
        epochs=options.epochs,
        batch=options.batch,
        lr=options.lr,
        decay_at=(),
    )


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
