"""A workshop loads real images, backbones and classifiers once, and all recipes that are run with it share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dap import backbones, starter
from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.files import sha256_of
from dap.base.parsing import check_one_of
from dap.base.registry import build, code_of, resolve
from dap.base.store import Store
from dap.choices import OwnGuidance
from dap.data.familiar import warned
from dap.data.real.captions import check_captions, read_captions
from dap.data.real.decode import Fit
from dap.data.real.finding.outputs import check_outside
from dap.data.real.held import Part
from dap.data.real.sources import EMBEDDED, Source, check_path, open_source
from dap.data.real.stored.budget import Budget
from dap.data.sets.differences import OBJECTS_RECORD, RECORD
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.loading import check_classifier, load_classifier
from dap.guidance.base import Descend, Energy, Guidance, Window
from dap.methods import find
from dap.methods.base import Given, Method, Options, Task, check_clips
from dap.named import code_of_classifier, code_of_recipe
from dap.objects import Objects
from dap.recipe import BackboneChoice, Data, Recipe

OPEN = 32
"""The side in px at which images are listed while their size is open, and which sets get whose images have no size."""

STARTER = "starter"
"""The name of the classifier that ships with dap, for fashion-mnist."""


@dataclass
class Workshop:
    """Loads data, backbones and classifiers once for all recipes, and builds the task of each recipe once.

    Args:
        device: "auto", "cpu", "cuda", …
        offline: never ask the network.
        cache: the folder in which runs share their real features and what methods make once, or None.
        objects: the objects that are given in place of names in the recipes.
        offload: which parts of a backbone leave the GPU while others work, see `backbones.load`.
        budget: memory and disk that real images and their features may take. None: what is free, less a reserve.
    """

    device: str = "auto"
    offline: bool = False
    cache: Path | None = None
    objects: Objects = field(default_factory=Objects)
    offload: str = "none"
    budget: Budget | None = None

    def __post_init__(self) -> None:
        self._backbones: dict[tuple[BackboneChoice, str], Backbone] = {}
        self._listings: dict[tuple[Any, ...], Source] = {}
        self._sources: dict[tuple[Any, ...], Source] = {}
        self._hashes: dict[int, str] = {}
        self._classifiers: dict[tuple[str, tuple[str, ...], str], Classifier] = {}
        self._tasks: dict[str, tuple[Method, Task]] = {}
        self._kept: list[Backbone | Source] = []
        self._looked_at: dict[tuple[int, int], float | None] = {}
        self.told: set[str] = set()  # sentences of which one is enough for all sets
        self.tell: Callable[[str], object] = lambda text: None

    def with_method(self, method: Method) -> Workshop:
        """A workshop that makes its sets by this method. The two workshops share all that either of them loads."""
        other = replace(self, objects=replace(self.objects, method=method))
        shared = ("_backbones", "_listings", "_sources", "_hashes", "_classifiers", "_kept", "tell", "_looked_at")
        vars(other).update({name: getattr(self, name) for name in shared})
        return other

    def backbone(self, choice: BackboneChoice) -> Backbone:
        """The backbone of a recipe, or the object that was given in its place."""
        if self.objects.backbone is not None:
            return self.objects.backbone
        key = (choice, str(code_of(choice.path)))  # if a user's own file has changed, it is another backbone
        if key not in self._backbones:
            self._backbones[key] = backbones.load(
                choice.path,
                revision=choice.revision,
                dtype=choice.dtype,
                device=self.device,
                offline=self.offline,
                template=choice.template,
                negative_prompt=choice.negative_prompt,
                offload=self.offload,
            )
        return self._backbones[key]

    def source(self, data: Data, split: Literal["train", "validation", "test"] = "train", fit: Fit = "crop") -> Source:
        """The real images of a recipe whose size is set. The files of a folder are listed once for all recipes.

        Args:
            data: the choice of the images and their size.
            split: "validation" is the part of the training images that is held out. "train" is the other part.
            fit: see `data.real.decode.square`.

        Raises:
            DapError: the recipe leaves the size open, there is no such split, or no images are held out for a validation.
                `open_source` says what else raises.
        """
        check_one_of(split, ("train", "validation", "test"), "Real images take a split")
        if data.size is None:
            raise DapError("The size of the images is open; give the data of a resolved recipe, or set data.size.")
        if split == "validation" and not data.held_out:
            raise DapError("No images are held out for validation; give --held-out, such as 0.1, when distilling.")
        given = self.objects.source
        fit = given.fit if isinstance(given, Source) else fit  # it was opened with one
        key = (*listing_of(data, split), data.size, fit, data.held_out, split)
        if key not in self._sources:
            whole = self.whole(data, "test" if split == "test" else "train", fit).fitted(data.size, fit)
            self._sources[key] = Part(whole, split, data.held_out) if split != "test" and data.held_out else whole
        return self._sources[key]

    def whole(self, data: Data, split: Literal["train", "test"] = "train", fit: Fit = "crop") -> Source:
        """All images of a split, at any size: a recipe may leave the size open. They are listed once, and told once."""
        listing = listing_of(data, split)
        if listing not in self._listings:
            self._listings[listing] = self._listed(data, split, fit)
            self.tell(self._listings[listing].told(split))
        return self._listings[listing]

    def _listed(self, data: Data, split: Literal["train", "test"], fit: Fit) -> Source:
        """All images of a split. This lists the images anew, and `whole` keeps the list."""
        size = data.size or OPEN
        if self.objects.source is None:
            how: dict[str, Any] = {"size": size, "classes": data.classes, "max_bad_fraction": data.max_bad_fraction}
            chosen = None if data.split is None else data.split.given()
            if self.cache is not None:
                check_outside(self.cache, data.path, chosen, data.frames, flag="--cache")
            return open_source(data.path, split, fit=fit, chosen=chosen, frames=data.frames, **how)
        if split == "test":
            raise DapError(
                "The real images were given as an object, which has no test images; judge the set with --data."
            )
        return self.objects.images(data, size, fit)

    def weights_hash(self, backbone: Backbone | None) -> str | None:
        """`Backbone.weights_hash`, computed once; None for no backbone."""
        return None if backbone is None else self._hashed(backbone, backbone.weights_hash)

    def fingerprint(self, source: Source) -> str:
        """`Source.fingerprint`, computed once where the images are steady."""
        return self._hashed(source, source.fingerprint) if source.steady else source.fingerprint()

    def _hashed(self, thing: Backbone | Source, compute: Any) -> str:
        # Python may give the id of a dead object to a new one. So the workshop keeps each object whose id it uses as a key.
        if id(thing) not in self._hashes:
            self._hashes[id(thing)] = compute()
            self._kept.append(thing)
        return self._hashes[id(thing)]

    def asked(self, recipe: Recipe) -> tuple[Method, Options | None]:
        """The method of a recipe and the method's own options, checked before anything is loaded or downloaded.

        Raises:
            DapError: the method or an option is unknown, there are no such data, something that the method needs is not
                given, or something is given that the method does not use.
        """
        method = self.objects.method or find(recipe.method)
        if self.objects.source is None:
            check_path(recipe.data.path)
        check_clips(method, recipe.method, recipe.data.frames, self.objects.source)
        options = method.parse(recipe.options, recipe.method)
        if (name := _classifier(method, recipe)) not in (None, STARTER):
            check_classifier(name)
        if (file := _captions(method, recipe)) is not None:
            check_captions(file)
        if recipe.own_guidance is not None and recipe.own_guidance.path is not None:
            if not method.steered:
                raise DapError(
                    f"Method {recipe.method!r} has no use for a guidance of your own; leave out --guidance, or take a method "
                    "that samples a backbone, such as vanilla."
                )
            self.guidance(recipe.own_guidance)
        return method, options

    def guidance(self, own: OwnGuidance) -> Guidance:
        """The user's own guidance, with its scale and confined to its part of the run.

        Raises:
            DapError: there is no such file or name, or the object is neither a guidance nor an energy.
        """
        path = own.path or ""
        made = self.objects.guidance or build(resolve(path, {}, "guidance"), path)
        if isinstance(made, Energy):
            made = Descend(made, own.scale, own.unit)
        elif not isinstance(made, Guidance):
            raise DapError(
                f"{path!r} is a {type(made).__name__} and neither a guidance nor an energy; subclass dap.guidance.Guidance "
                "or dap.guidance.Energy."
            )
        elif own.scale != 1:
            made = own.scale * made
        return made if (own.start, own.stop) == (0, 1) else Window(made, own.start, own.stop)

    def task(self, recipe: Recipe) -> tuple[Method, Task]:
        """The method of a recipe and its task, which holds the resolved recipe and all that the method needs.

        The task of a recipe is built once. Later calls return the same task, as long as the user's own files and images in memory
        do not change.

        Raises:
            DapError: something is wrong with the recipe, the data or the backbone. This is raised before any work.
        """
        asked = self.asked(recipe)  # this loads a user's own file anew if the file has changed
        captions = sha256_of(Path(recipe.captions)) if recipe.captions else None
        stated = recipe.model_dump_json(exclude_unset=True)  # the method decides what is not stated
        code = {**code_of_recipe(recipe, self.objects.sections), **code_of_classifier(recipe.classifier)}
        key = f"{stated} {code} {captions} {self.objects.described()}"
        if self.objects.source is not None and not (whole := self.whole(recipe.data)).steady:
            key += f" {whole.fingerprint()}"
        if key not in self._tasks:
            self._tasks[key] = self._built(recipe, *asked)
        return self._tasks[key]

    def _built(self, recipe: Recipe, method: Method, options: Options | None) -> tuple[Method, Task]:
        needed = "backbone" in method.needs
        # Where a recipe names a backbone, sets of real images have its size too, so that they can be compared.
        named = recipe.backbone is not None and "path" in recipe.backbone.model_fields_set
        wanted = needed or (recipe.data.size is None and (named or self.objects.backbone is not None))
        backbone = self.backbone(recipe.backbone or BackboneChoice()) if wanted else None
        size = recipe.data.size or (backbone.card.size if backbone else self._side(recipe.data))
        data = recipe.data.model_copy(update={"size": size})
        options = options.settled(recipe.ipc) if options else None
        said = options.model_dump(mode="json") if options else {}
        how: dict[str, Any] = {"sampling": method.sampling, "together": method.together, "options": said}
        how["refinement"] = method.refinement
        name, file = _classifier(method, recipe), _captions(method, recipe)
        resolved = recipe.resolved(backbone if needed else None, method.guidance, size, classifier=name, **how)
        source = self.source(data)
        if needed and backbone is not None:
            key = (id(backbone), id(source))
            if key not in self._looked_at:  # both objects live as long as the workshop, which keeps what it loads
                self._looked_at[key] = warned(backbone, source)
        own = resolved.own
        given = Given(
            backbone=backbone if needed else None,
            classifier=None if name is None else self.classifier(name, source),
            captions=None if file is None else read_captions(file, source),
            guidance=None if own is None else self.guidance(own),
        )
        task = Task(
            resolved, source, given, self.cache, options, device=backbones.device_of(self.device), budget=self.budget
        )
        return method, replace(task, store=Store(None, self.inputs(task)))

    def strangeness(self, task: Task) -> float | None:
        """How unlike all that the backbone has seen the real images of a task are, where this is too much; see `familiar`."""
        return self._looked_at.get((id(task.given.backbone), id(task.source)))

    def _side(self, data: Data) -> int:
        """The side in px of a set that needs no backbone: that of its images."""
        whole = self.whole(data)
        side, found = whole.side(), whole.sizes()
        if side is None:
            return OPEN
        if len(set(found)) > 1 or (found and min(found[0]) != side and data.path != EMBEDDED):
            self.tell(
                f"the set gets images of {side} × {side} px, as the images differ in size or are large; --size says another"
            )
        return side

    def classifier(self, name: str, source: Source) -> Classifier:
        """The network trained on the real data, for the classes of the source.

        Args:
            name: "starter", or a name or file that `load_classifier` opens.
            source: the real images.
        """
        # If a user's own file has changed, it is another classifier.
        key = (name, source.class_names, str(code_of_classifier(name)))
        if key not in self._classifiers:
            path = starter.REFERENCE if name == STARTER else name
            device = str(backbones.device_of(self.device))
            found = load_classifier(path, source.class_names, device, offline=self.offline)
            self._classifiers[key] = replace(found, name=name)
        return self._classifiers[key]

    def inputs(self, task: Task) -> dict[str, Any]:
        """Fingerprints of what a recipe only names: data, weights, classifier, captions, user code, and given objects."""
        given = task.given
        found: dict[str, Any] = {
            "data": self.fingerprint(task.source),
            "weights": self.weights_hash(given.backbone),
            **code_of_recipe(task.recipe, self.objects.sections),
        }
        if given.classifier is not None:
            found["classifier"] = given.classifier.fingerprint
        if given.captions is not None:
            found["captions"] = sha256_of(check_captions(task.recipe.captions or ""))
        if described := self.objects.described():
            found |= {"objects": described, OBJECTS_RECORD: RECORD}
        return found


def listing_of(data: Data, split: str) -> tuple[Any, ...]:
    """What decides which images a split has."""
    return (data.path, data.classes, data.max_bad_fraction, data.split, data.frames, split == "test")


def _classifier(method: Method, recipe: Recipe) -> str | None:
    """The name of the classifier for a method, as `Workshop.classifier` takes it. None for a method that needs none.

    Raises:
        DapError: the method needs a classifier and there is none, or a classifier is given that the method does not
            need.
    """
    if "classifier" not in method.needs:
        if recipe.classifier:
            raise DapError(f"Method {recipe.method!r} has no use for a classifier; leave out --classifier.")
        return None
    if recipe.classifier in (None, STARTER) and recipe.data.path == EMBEDDED:
        return STARTER
    if recipe.classifier is None:
        raise DapError(
            f"Method {recipe.method!r} needs a network trained on the real data: make one with dap train-teacher "
            f"--data {recipe.data.path} --out FILE and give --classifier FILE, or give torchvision:NAME."
        )
    return recipe.classifier


def _captions(method: Method, recipe: Recipe) -> str | None:
    """The file of captions for a method. None for a method that needs none.

    Raises:
        DapError: the method needs captions and none are given, or captions are given that the method does not need.
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
