"""What every set of real images offers, whatever its files look like.

A broken image is named, counted and left out, up to a limit, instead of ending a long run or passing unseen.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import counted, halved, shown
from dap.data.real import sizes
from dap.data.real.decode import BrokenImage, Fit, check_fit
from dap.data.real.finding.walking import LAYOUTS
from dap.data.real.names import composed, some
from dap.data.real.recent import Recent

log = logging.getLogger("dap")

CACHE_BYTES = 256 * 2**20
"""The largest number of bytes that a source keeps in memory: of decoded images, and again of data read for decoding."""

LOOKED_AT = 48
"""How many images are looked at for their sizes."""


class Source(ABC):
    """Labelled real images. Labels are positions in `class_names`; indices count the images of one class from 0.

    Attributes:
        name: the name of the data set in manifests and messages.
        class_names: the classes in label order.
        licence: the licence of the images, where it is known.
        size, fit: the side of the images in pixels, and how images are made square; see `dap.data.real.decode.square`.
        notes: sentences on how the data were read and what was left out.
        place: a value that two sources share if they hold the images of the same files; None: not known.
        root: the folder that the keys of the images begin in; None: not known.
        opened: the split, and the keywords of a recipe that open its data again, with an absolute path; None: nothing does.
        steady: whether the images stay what they are; if not, they are hashed whenever their fingerprint is asked for.
        frames: how many frames a clip has, for a source of clips (3, frames, size, size); None for images.
    """

    frames: int | None = None
    notes: tuple[str, ...] = ()
    place: Hashable = None
    root: Path | None = None
    opened: tuple[str, Mapping[str, Any]] | None = None
    steady: bool = True

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        counts: Sequence[int],
        *,
        size: int,
        fit: Fit,
        max_bad_fraction: float,
        licence: str | None = None,
    ) -> None:
        check_fit(size, fit)
        if not 0 <= max_bad_fraction <= 1:
            raise DapError(f"max_bad_fraction must lie in [0, 1], not {max_bad_fraction}")
        if not any(counts):
            raise DapError(f"no images found in {name}; accepted are {LAYOUTS}")
        if empty := [class_name for class_name, count in zip(class_names, counts, strict=True) if not count]:
            raise DapError(f"no images in {some(empty)} of {name}; add some, or leave it out by naming `classes`")
        if odd := next(filter(halved, class_names), None):
            raise DapError(
                f"the class name {shown(odd)} of {name} is not UTF-8; rename it, as with "
                "convmv -f latin1 -t utf8 -r --notest FOLDER, or leave it out by naming `classes`"
            )
        self.name, self.class_names, self.licence = name, tuple(map(composed, class_names)), licence
        self.size, self.max_bad_fraction = size, max_bad_fraction
        self.fit: Fit = fit
        self._counts, self._fingerprints = tuple(counts), dict[bool, str]()
        self._forget()
        self._sizes: list[tuple[int, int]] | None = None

    def fitted(self, size: int, fit: Fit) -> Self:
        """The same images at another size or fit; the files are not listed again, and decoded images are not shared."""
        check_fit(size, fit)
        if (size, fit) == (self.size, self.fit):
            return self
        twin = copy.copy(self)
        twin.size, twin.fit, twin._fingerprints = size, fit, {}
        twin._forget()
        return twin

    def _forget(self) -> None:
        """Forget the decoded images, and which ones could be decoded."""
        self._good: list[bytearray] = [bytearray(count) for count in self._counts]
        self._goods = 0  # the sum of `_good`, which is long with many classes
        self._bad: dict[tuple[int, int], str] = {}
        self._cache: Recent[Tensor] = Recent(CACHE_BYTES)

    @abstractmethod
    def _key(self, label: int, index: int) -> str:
        """A name by which a person finds the image; it is the same on every machine."""

    @abstractmethod
    def _decode(self, label: int, index: int) -> Tensor:
        """The image (3, size, size) in [0, 1]; raises `BrokenImage`."""

    @abstractmethod
    def _listing(self) -> Iterator[str]:
        """One line for each file with its content's hash, without times or absolute paths; `fingerprint` hashes these lines."""

    def _look(self, label: int, index: int) -> tuple[int, int] | None:
        """Width and height of an image before it is made square; None where this is not known."""
        del label, index
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, (3, size, size), or of a clip, (3, frames, size, size)."""
        return (3, *((self.frames,) if self.frames else ()), self.size, self.size)

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of some images before they are made square, spread over the classes and over each class."""
        if self._sizes is None:
            labels = range(0, len(self._counts), max(len(self._counts) // LOOKED_AT, 1))
            each = max(LOOKED_AT // len(labels), 1)
            places = [(label, index) for label in labels for index in sizes.spread(self._counts[label], each)]
            self._sizes = [seen for where in places[:LOOKED_AT] if (seen := self._look(*where)) is not None]
        return self._sizes

    def side(self) -> int | None:
        """The side that suits these images where nobody chooses one, see `sizes.side_of`; None where no size is known."""
        return sizes.side_of(found) if (found := self.sizes()) else None

    def understood(self) -> str:
        """What the source holds, in words: "10 classes, 60,000 images, 28 × 28"."""
        return ", ".join([sizes.held(self._counts, self.frames), *filter(None, [sizes.told(self.sizes())])])

    def told(self, split: str) -> str:
        """What was understood of a split, as one line: what it holds, how it was read and what was left out."""
        return "; ".join([f"{split}: {self.understood()}", *self.notes])

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(key, reason) of every broken image met so far."""
        return [(self._key(*where), reason) for where, reason in self._bad.items()]

    def count(self, label: int) -> int:
        """How many images the class has, broken ones included. Raises `DapError` for a label that does not exist."""
        if not 0 <= label < len(self._counts):
            raise DapError(f"{self.name} has labels 0 to {len(self._counts) - 1}, not {label}")
        return self._counts[label]

    def keys(self, label: int, indices: Sequence[int]) -> list[str]:
        """The names of images: a path relative to the class folders, `file.parquet#row`, or `train/123`."""
        return [self._key(label, self._checked(label, index)) for index in indices]

    def good(self, label: int, n: int, seed: int, least: int | None = None) -> list[int]:
        """Draw `n` indices of decodable images of a class, uniformly without replacement.

        The draw depends on the seed and the class's images alone, and a smaller `n` gives the beginning of the same
        list. The decoded images stay in memory, so that they need not be decoded again when they are read.

        Args:
            label: the label of the class.
            n: the number of images.
            seed: the seed of the draw.
            least: the smallest number that is enough where the class has fewer than `n` decodable images; default: `n`.

        Raises:
            DapError: the class has fewer than `least` decodable images, or too many of all images read, with these, are
                broken.
        """
        total = self.count(label)
        n = n if least is None else max(min(n, total), least)
        if not 0 <= n <= total:
            raise DapError(
                f"class {self.class_names[label]!r} of {self.name} has {counted(total, 'image')}, not the {n} asked for; ask for "
                "fewer or add images"
            )
        order = iter(torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist())
        found: list[int] = []
        while len(found) < n:
            drawn = list(islice(order, n - len(found)))
            if not drawn and least is not None and len(found) >= least:
                break
            if not drawn:
                raise DapError(
                    f"class {self.class_names[label]!r} of {self.name} has only {counted(len(found), 'decodable image')} "
                    f"of {total}, but {n if least is None else least} are asked for; ask for fewer, repair them or "
                    f"add images. Broken: {self._first_bad(label)}"
                )
            planned = self._seen_after((label, index) for index in drawn)
            for index in sorted(drawn):  # neighbours on disk one after the other
                if not self._good[label][index] and self._fetch(label, index) is None:
                    self._check_bad_fraction(planned)
            found += [index for index in drawn if self._good[label][index]]
        return found

    def images(self, label: int, indices: Sequence[int]) -> Tensor:
        """Images of a class: (n, 3, size, size), float32 in [0, 1], in the order of `indices`.

        Raises:
            DapError: an index does not exist, or its image is broken.
        """
        images = torch.empty(len(indices), *self.shape)
        wanted = [self._checked(label, index) for index in indices]
        for position in sorted(range(len(wanted)), key=wanted.__getitem__):
            if (image := self._fetch(label, index := wanted[position])) is None:
                where = f"{self._key(label, index)} of {self.name}"
                raise DapError(f"{where} is broken ({self._bad[label, index]}); draw with `good`")
            images[position] = image
        return images

    def tensors(self, limit_per_class: int | None = None, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Images (n, 3, size, size) in [0, 1] and labels (n,) int64, class by class, without the broken ones.

        With a limit, these are the first decodable images of each class; for a random choice use `good`. With the dtype
        uint8 the images are whole numbers from 0 to 255, in a quarter of the memory.

        Raises:
            DapError: too many images are broken, or all images of a class.
        """
        if limit_per_class is not None and limit_per_class < 1:
            raise DapError(f"limit_per_class must be at least 1, not {limit_per_class}")
        takes = [count if limit_per_class is None else min(count, limit_per_class) for count in self._counts]
        images = torch.empty(sum(takes), *self.shape, dtype=dtype)
        labels: list[int] = []
        planned = self._seen_after((label, index) for label, take in enumerate(takes) for index in range(take))
        for label, take in enumerate(takes):
            start = len(labels)
            for index in range(self._counts[label]):
                if len(labels) == start + take:
                    break
                image = self._fetch(label, index, keep=False)
                if image is None:
                    self._check_bad_fraction(planned)
                else:
                    images[len(labels)] = image if dtype.is_floating_point else (image * 255).round()
                    labels.append(label)
            if len(labels) == start:
                self.refuse_broken(label)
        return images[: len(labels)], torch.tensor(labels)

    def readable(self, label: int, indices: Sequence[int]) -> tuple[list[int], Tensor]:
        """The indices whose image can be decoded, and these images (n, 3, size, size). The source keeps none in memory.

        Raises:
            DapError: an index does not exist, or too many of all images read, with these, are broken.
        """
        wanted = [self._checked(label, index) for index in indices]
        planned = self._seen_after((label, index) for index in wanted)
        images, kept = torch.empty(len(wanted), *self.shape), []
        for index in wanted:
            image = self._fetch(label, index, keep=False)
            if image is None:
                self._check_bad_fraction(planned)
            else:
                images[len(kept)] = image
                kept.append(index)
        return kept, images[: len(kept)]

    def fingerprint(self, *, sized: bool = True) -> str:
        """sha256 of everything that decides the images: classes in order, size, fit, and a listing of the files.

        The listing has the names and the sha256 of the files: a copy in another place has the same fingerprint, and an image that
        changes changes it. It is computed once if the images are `steady`. `identity` says when a file is not read again.

        Args:
            sized: False leaves out size and fit, so that the fingerprint is the same at every size.
        """
        if not self.steady or sized not in self._fingerprints:
            digest = hashlib.sha256()
            for line in (json.dumps([self.class_names, *([self.size, self.fit] if sized else [])]), *self._listing()):
                digest.update(line.encode() + b"\n")
            before, self._fingerprints[sized] = self._fingerprints.get(sized), digest.hexdigest()
            if not self.steady and before != self._fingerprints[sized]:
                self._forget()  # what was decoded may be of other images
        return self._fingerprints[sized]

    def _checked(self, label: int, index: int) -> int:
        count = self.count(label)
        if not 0 <= index < count:
            raise DapError(f"class {self.class_names[label]!r} of {self.name} has images 0 to {count - 1}, not {index}")
        return int(index)

    def _fetch(self, label: int, index: int, keep: bool = True) -> Tensor | None:
        """The image, or None for a broken image. A broken image is logged when it is first met."""
        where = (label, index)
        if where in self._bad:
            return None
        if (image := self._cache.get(where)) is None:
            try:
                image = self._decode(label, index)
            except BrokenImage as error:
                self._leave_out(label, index, error.reason)
                return None
            self._goods += not self._good[label][index]
            self._good[label][index] = True
            if keep:
                self._cache.put(where, image, image.nbytes)
        return image

    def decoded(self, label: int, index: int) -> Tensor:
        """An image (3, size, size) in [0, 1], decoded now. Raises `BrokenImage`. Other processes may call this."""
        if (reason := self._bad.get((label, index))) is not None:
            raise BrokenImage(reason, self._key(label, index))
        return self._decode(label, index)

    def met(self, label: int, index: int, reason: str, planned: int) -> None:
        """Note that an image is broken. `planned` is the number of images that are read; see `_check_bad_fraction`."""
        if (label, index) not in self._bad:
            self._leave_out(label, index, reason)
        self._check_bad_fraction(planned)

    def refuse_broken(self, label: int) -> None:
        """Raise `DapError`, as all images of a class are broken."""
        where = f"class {self.class_names[label]!r} of {self.name}"
        raise DapError(f"all images of {where} are broken: {self._first_bad()}; repair them")

    def _leave_out(self, label: int, index: int, reason: str) -> None:
        self._goods -= self._good[label][index]
        self._good[label][index], self._bad[label, index] = False, reason
        log.warning("left out %s of %s: %s", self._key(label, index), self.name, reason)

    def _seen_after(self, places: Iterable[tuple[int, int]]) -> int:
        """How many different images will have been read when those at these (label, index) are read too."""
        new = sum(not self._good[label][index] and (label, index) not in self._bad for label, index in places)
        return new + len(self._bad) + self._goods

    def _check_bad_fraction(self, planned: int) -> None:
        # Compared with the number that will have been read, because the verdict must not depend on which image comes first.
        if (bad := len(self._bad)) > 1 and bad / planned > self.max_bad_fraction:
            raise DapError(
                f"{counted(bad, 'broken image')} among the {planned} to read from {self.name}, above the limit of "
                f"{self.max_bad_fraction:.2%}: {self._first_bad()}; repair or remove them, or raise max_bad_fraction"
            )

    def _first_bad(self, label: int | None = None) -> str:
        """The names of the first broken images, of one class or of all, with the reasons."""
        bad = [(self._key(*where), reason) for where, reason in self._bad.items() if label in (None, where[0])]
        return some([f"{key} ({reason})" for key, reason in bad[:3]])
