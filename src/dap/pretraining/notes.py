"""The file training.json of a backbone: what was asked for, the sizes that were chosen, and how the training went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dap.base.documents import read_json
from dap.base.fields import FromFile, Name, Text
from dap.base.files import dump, write_atomically
from dap.imagenet import spoken
from dap.pretraining.fitting import Outcome
from dap.pretraining.networks import Kind, Sizes

FILE = "training.json"

Count = Annotated[int, Field(ge=0, le=10**12)]
Number = Annotated[float, Field(ge=-1e12, le=1e12)]


class Asked(FromFile, frozen=True):
    """What a training was asked for. A folder goes on, or is done, only if all of this is the same.

    Attributes:
        kind: the kind of the denoiser.
        backbone: the hash of the weights that are tuned; None: the training starts from nothing.
        rank: the rank of LoRA's matrices; None: there are none.
        size: the side of the images in px; None: chosen.
        minutes: the time that the sizes and the numbers of steps are chosen for.
        autoencoder_steps, steps: the steps of the autoencoder and of the denoiser; None: chosen.
        seed: decides first weights and all draws.
        flip: whether mirror images are shown.
        classes: the names of the classes in label order.
        data: the fingerprint of the images that are trained on, without their size.
        images, held_out: how many images or clips are trained on, and how many are held out, before broken ones are left out.
        frames: how many frames a clip has; None for images.
        template: the prompt of a text backbone, with {} for the class name; None: that of its card.
        spoken: the names that prompts say in place of `classes`, in label order; None: there are no prompts, or they say
            `classes`. Earlier versions trained on `classes`, whatever the finished backbone was then asked for.
    """

    kind: Kind
    size: Count | None
    minutes: Number
    autoencoder_steps: Count | None
    steps: Count | None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    flip: bool
    classes: Annotated[list[Name], Field(min_length=1, max_length=10**6)]
    data: Name
    images: Count
    held_out: Count
    backbone: Name | None = None
    rank: Count | None = None
    frames: Count | None = None
    template: Text | None = None
    spoken: Annotated[list[Text], Field(max_length=10**6)] | None = None

    @property
    def misnamed(self) -> bool:
        """Whether an earlier version trained on prompts with other names than the backbone is now asked for.

        Raises:
            DapError: a class has no name to make a prompt of.
        """
        from_nothing = self.kind == "unet" and self.backbone is None
        return from_nothing and (self.spoken or self.classes) != list(map(spoken, self.classes))


class Stage(FromFile, frozen=True):
    """One stage: what is planned, and once it is done what it came to.

    Attributes:
        planned: the number of steps that are planned.
        parameters: how many parameters are trained.
        steps: the number of steps that were made.
        best: the step whose averaged weights are the result.
        turned: whether the stage ended early, because the held-out loss had turned.
        seconds: the time of all processes that worked on it.
        history: at each look [step, mean training loss since the look before, held-out loss].
    """

    planned: Count
    parameters: Count | None = None
    steps: Count | None = None
    best: Count | None = None
    turned: bool | None = None
    seconds: Number | None = None
    history: Annotated[list[Annotated[list[Number | None], Field(max_length=3)]], Field(max_length=10**4)] = []

    def done(self, found: Outcome, parameters: int) -> Stage:
        """The stage after its training."""
        history: list[list[float | None]] = [
            [step, round(loss, 5), None if held is None else round(held, 5)] for step, loss, held in found.history
        ]
        told = {"steps": found.steps, "best": found.best, "turned": found.turned, "seconds": found.seconds}
        return self.model_copy(update={**told, "parameters": parameters, "history": history})


class Notes(FromFile, frozen=True):
    """A training.json.

    Attributes:
        asked: what was asked for.
        sizes: how large images and networks are.
        reason: why these sizes, in words.
        device: the device that the sizes were chosen on.
        versions: how many versions of each image are encoded at the most; None: as many as so few images usually have.
        reserved: the seconds that were planned for the denoiser when the training began; None: they are not known.
        autoencoder, decoder, denoiser: the stages. None: there is no such stage, or its steps are not chosen yet.
        psnr_held_out_db, psnr_train_db: how well held-out images and images of the training are reconstructed, in dB.
        done: whether the backbone is whole.
    """

    asked: Asked
    sizes: Sizes
    reason: Text = ""
    device: Name = "cpu"
    versions: Annotated[int, Field(ge=1, le=100)] | None = None
    reserved: Number | None = None
    autoencoder: Stage | None = None
    decoder: Stage | None = None
    denoiser: Stage | None = None
    psnr_held_out_db: Number | None = None
    psnr_train_db: Number | None = None
    done: bool = False

    def but(self, **values: object) -> Notes:
        """The same notes with other values of some fields."""
        return self.model_copy(update=values)

    @property
    def seconds(self) -> float:
        """The time of all stages."""
        return sum(stage.seconds or 0 for stage in (self.autoencoder, self.decoder, self.denoiser) if stage)


def read_notes(folder: Path) -> Notes | None:
    """The notes of a folder; None where there are none.

    Raises:
        DapError: the file is damaged, or another program wrote it.
    """
    file = folder / FILE
    return read_json(file, Notes) if file.exists() else None


def write_notes(folder: Path, notes: Notes) -> None:
    """Write the notes of a folder."""
    write_atomically(folder / FILE, dump(notes.model_dump(mode="json")))
