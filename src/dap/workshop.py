"""A workshop loads real images, backbones and classifiers once, for as many recipes as are run with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dap import backbones
from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.files import sha256_of
from dap.base.store import Store
from dap.data.real.captions import check_captions, read_captions
from dap.data.real.decode import Fit
from dap.data.real.held import Part
from dap.data.real.sources import Source, check_path, open_source
from dap.evaluation.training.classifier import Classifier, check_classifier, load_classifier
from dap.methods import Method, Options, Task, find
from dap.recipe import BackboneChoice, Data, Recipe
from dap.starter import REFERENCE

STARTER = "starter"
"""Name of the network that ships with the embedded data."""


@dataclass
class Workshop:
    """Loads sources and backbones once, for as many recipes as are run with it.

    Args:
        device: "auto", "cpu", "cuda", …
        offline: never ask the network.
        cache: folder in which runs share their real features, or None.
    """

    device: str = "auto"
    offline: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        self._backbones: dict[BackboneChoice, Backbone] = {}
        self._sources: dict[tuple[Data, str, Fit], Source] = {}
        self._hashes: dict[int, str] = {}
        self._classifiers: dict[tuple[str, tuple[str, ...]], Classifier] = {}

    def backbone(self, choice: BackboneChoice) -> Backbone:
        if choice not in self._backbones:
            self._backbones[choice] = backbones.load(
                choice.path,
                revision=choice.revision,
                dtype=choice.dtype,
                device=self.device,
                offline=self.offline,
                template=choice.template,
                negative_prompt=choice.negative_prompt,
            )
        return self._backbones[choice]

    def source(self, data: Data, split: Literal["train", "validation", "test"] = "train", fit: Fit = "crop") -> Source:
        """The real images of a recipe whose size is set.

        Args:
            data: what and how large.
            split: `validation` is the part of the training images that is held out, `train` the others.
            fit: see `data.real.decode.square`.

        Raises:
            DapError: nothing is held out for a validation, or as `open_source`.
        """
        assert data.size is not None
        if (data, split, fit) not in self._sources:
            if split == "validation" and not data.held_out:
                raise DapError("No images are held out for validation; give --held-out, such as 0.1, when distilling.")
            options: dict[str, Any] = {
                "size": data.size,
                "classes": data.classes,
                "max_bad_fraction": data.max_bad_fraction,
            }
            source = open_source(data.path, "test" if split == "test" else "train", fit=fit, **options)
            if data.held_out and split != "test":
                source = Part(source, split, data.held_out)
            self._sources[data, split, fit] = source
        return self._sources[data, split, fit]

    def weights_hash(self, backbone: Backbone | None) -> str | None:
        """`Backbone.weights_hash`, computed once; None for no backbone."""
        if backbone is None:
            return None
        if id(backbone) not in self._hashes:
            self._hashes[id(backbone)] = backbone.weights_hash()
        return self._hashes[id(backbone)]

    def asked(self, recipe: Recipe) -> tuple[Method, Options | None]:
        """The method and its own options: all that can be said of a recipe before anything is loaded, or downloaded.

        Raises:
            DapError: an unknown method or option, no such data, or something that the method needs is not given.
        """
        method = find(recipe.method)
        check_path(recipe.data.path)
        options = method.parse(recipe.options, recipe.method)
        if (name := _classifier(method, recipe)) not in (None, STARTER):
            check_classifier(name)
        if (file := _captions(method, recipe)) is not None:
            check_captions(file)
        return method, options

    def task(self, recipe: Recipe) -> tuple[Method, Task]:
        """The method and all it needs, with the recipe resolved.

        Raises:
            DapError: whatever is wrong with the recipe, the data or the backbone, before any work.
        """
        method, options = self.asked(recipe)
        needed = "backbone" in method.needs
        backbone = self.backbone(recipe.backbone or BackboneChoice()) if needed or recipe.data.size is None else None
        size = recipe.data.size or (backbone.card.size if backbone else 0)
        resolved = recipe.resolved(
            backbone if needed else None, method.guidance, size, method.sampling, method.together
        )
        source = self.source(resolved.data)
        name, file = _classifier(method, recipe), _captions(method, recipe)
        classifier = None if name is None else self.classifier(name, source)
        captions = None if file is None else read_captions(file, source)
        resolved = resolved.model_copy(
            update={
                "options": options.model_dump(mode="json") if options else {},
                "classifier": classifier and classifier.name,
            }
        )
        task = Task(resolved, source, backbone if needed else None, self.cache, options, classifier, captions)
        return method, replace(task, store=Store(None, self.inputs(task)), device=backbones.device_of(self.device))

    def classifier(self, name: str, source: Source) -> Classifier:
        """The network trained on the real data, "starter" or whatever `load_classifier` opens, for the source's classes."""
        key = (name, source.class_names)
        if key not in self._classifiers:
            path = REFERENCE if name == STARTER else name
            device = str(backbones.device_of(self.device))
            found = load_classifier(path, source.class_names, device, offline=self.offline)
            self._classifiers[key] = replace(found, name=name)
        return self._classifiers[key]

    def inputs(self, task: Task) -> dict[str, Any]:
        """What a recipe only names: fingerprints of data, weights, classifier, captions and user code."""
        found = {"data": task.source.fingerprint(), "weights": self.weights_hash(task.backbone), **_code(task.recipe)}
        if task.classifier is not None:
            found["classifier"] = task.classifier.fingerprint
        if task.captions is not None:
            found["captions"] = sha256_of(check_captions(task.recipe.captions or ""))
        return found


def _classifier(method: Method, recipe: Recipe) -> str | None:
    """The name of the classifier that a method is to have, for `Workshop.classifier`; None for one that needs none.

    Raises:
        DapError: it is needed and there is none, or given and not needed.
    """
    if "classifier" not in method.needs:
        if recipe.classifier:
            raise DapError(f"Method {recipe.method!r} has no use for a classifier; leave out --classifier.")
        return None
    if recipe.classifier in (None, STARTER) and recipe.data.path == "fashion-mnist":
        return STARTER
    if recipe.classifier is None:
        raise DapError(
            f"Method {recipe.method!r} needs a network trained on the real data: make one with dap train-teacher "
            f"--data {recipe.data.path} --out FILE and give --classifier FILE, or give torchvision:NAME."
        )
    return recipe.classifier


def _captions(method: Method, recipe: Recipe) -> str | None:
    """The file of captions for a method; None for one that needs none.

    Raises:
        DapError: it is needed and not given, or given and not needed.
    """
    if "captions" not in method.needs:
        if recipe.captions:
            raise DapError(f"Method {recipe.method!r} has no use for captions; leave out --captions.")
        return None
    if recipe.captions is None:
        raise DapError(
            f"Method {recipe.method!r} needs captions of the real images: give --captions FILE, JSON lines of path and "
            f"caption; dap caption --data {recipe.data.path} --out FILE writes one."
        )
    return recipe.captions


def _code(recipe: Recipe) -> dict[str, str]:
    """sha256 of the user's own files that the recipe names as `file.py:Name`."""
    named = [
        recipe.method,
        recipe.guidance.kernel if recipe.guidance else "",
        recipe.backbone.path if recipe.backbone else "",
        *(value for value in recipe.options.values() if isinstance(value, str)),  # a network to match in
    ]
    files = [text.rpartition(":")[0] for text in named if text.rpartition(":")[0].endswith(".py")]
    return {f"code {file}": sha256_of(Path(file)) or "" for file in files}
