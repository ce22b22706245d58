"""The contract of a `Backbone`: the properties that the sampling loop, the guidances and the feature bank rely on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dap.backbones.base import Backbone, Card
from dap.backbones.schedules import Flow, Schedule, VariancePreserving
from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.testing import autoencoder, features
from dap.testing.findings import Finding, Verdicts, difference, kind_of, run, said, warn, wrong
from dap.testing.probe import B, Probe


def description(p: Probe) -> Verdicts:
    b = p.backbone
    for name in ("card", "latent_shape", "layers", "class_names", "schedule", "learned_variance", "device"):
        if not hasattr(b, name):
            yield wrong(f"there is no attribute {name!r}; set it in __init__ (see dap.Backbone).")
    if not isinstance(b.card, Card):
        yield wrong(f"card is {kind_of(b.card)}; make it a dap.backbones.Card.")
    shape = b.latent_shape
    if not (isinstance(shape, tuple) and len(shape) >= 2 and all(isinstance(n, int) and n > 0 for n in shape)):
        yield wrong(f"latent_shape is {shape!r}; make it a tuple (channels, *spatial) of whole numbers above 0.")
    words = [isinstance(name, str) for name in b.layers]
    if not words or not all(words) or len(set(b.layers)) < len(words):
        yield wrong(f"layers is {b.layers!r}; make it a tuple of different names, at least one.")
    if b.card.layer not in b.layers:
        yield wrong(f"the card's layer {b.card.layer!r} is not among layers ({', '.join(b.layers)}); change the card.")
    names: Sequence[str] = b.class_names
    if not names and not b.unconditional and "{}" not in (b.card.template or ""):
        yield wrong(
            "there are neither class_names nor, on the card, a prompt template with {}; give one of them, or set unconditional."
        )
    if not isinstance(b.device, torch.device):
        yield wrong(f"device is {b.device!r}; make it a torch.device.")
    channels = next(iter(shape), 0)
    if b.card.cfg_channels != "all" and b.card.cfg_channels > channels:
        yield wrong(
            f"the card's cfg_channels is {b.card.cfg_channels}, but latents have {counted(channels, 'channel')}."
        )
    labels = f"{counted(len(names), 'class')}" if names else f"prompts such as {b.card.template!r}"
    labels = "no classes" if b.unconditional else labels
    return f"latents {shape}, {counted(len(b.layers), 'layer')} with the card's {b.card.layer!r} among them, {labels}"


def schedule(p: Probe) -> Verdicts:
    schedule = p.backbone.schedule
    if not isinstance(schedule, Schedule):
        yield wrong(f"schedule is {kind_of(schedule)}; make it a VariancePreserving or a Flow of dap.backbones.")
        return ""
    if not isinstance(schedule, (VariancePreserving, Flow)):
        yield wrong(f"no solver knows a schedule of the kind {type(schedule).__name__}; subclass one they know.")
        return ""
    last = schedule.steps if isinstance(schedule, Flow) else len(schedule) - 1
    levels = [schedule.level(round(last * i / 20)) for i in range(21)]
    if any(a < b for (a, _), (b, _) in pairwise(levels)):
        yield wrong("the share of data, alpha(t), does not fall as t grows; is the schedule reversed?")
    if any(a > b for (_, a), (_, b) in pairwise(levels)):
        yield wrong("the share of noise, sigma(t), does not grow with t; is the schedule reversed?")
    alpha, end = levels[0][0], levels[-1][0]
    if alpha < 0.9:
        yield wrong(f"at t = 0 x still holds only {alpha:.3f} of the data; it should be nearly data (0.9 or more).")
    if end > 0.3:
        yield wrong(f"at the end alpha is {end:.3f}; sampling starts from pure noise, so it should be under 0.3.")
    first, _, final = p.times
    return f"alpha falls from {alpha:.3f} to {end:.3f}; the default solver runs from t = {first:g} to {final:g}"


def frozen(p: Probe) -> Verdicts:
    """Check that no parameter trains, that no module is in training mode, and that `state` names every parameter."""
    modules = _modules(p.backbone)
    parameters = {id(v): (f"{name}.{n}", v) for name, m in modules.items() for n, v in m.named_parameters()}
    trains = [name for name, v in parameters.values() if v.requires_grad]
    trains += [name for name, v in p.backbone.state().items() if v.requires_grad and id(v) not in parameters]
    if trains:
        yield wrong(f"{len(trains)} tensors train ({trains[0]}); call module.requires_grad_(False) in __init__.")
    training = [name for name, m in modules.items() if any(part.training for part in m.modules())]
    if training:
        yield wrong(
            f"{', '.join(training)} is in training mode, in which layers drop units at random; call .eval() in __init__."
        )
    kept = {v.data_ptr() for v in p.backbone.state().values()}
    lost = [name for name, v in parameters.values() if v.numel() and v.data_ptr() not in kept]
    if lost:
        yield warn(f"{len(lost)} parameters ({lost[0]}) are not in state(), so the hash of the weights misses them.")
    return f"{len(parameters)} parameters in {len(modules)} modules: none trains, and all are in evaluation mode"


def _modules(backbone: Backbone) -> dict[str, nn.Module]:
    """The torch modules among a backbone's attributes, and in dictionaries, lists and tuples among them. Each module once."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, value in [*vars(backbone).items()]:
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
        )
        for key, item in [(name, value), *((f"{name}[{k!r}]", v) for k, v in inside)]:
            if isinstance(item, nn.Module):
                found.setdefault(id(item), (key, item))
    return dict(found.values())


def prediction(p: Probe) -> Verdicts:
    """Check predictions at the first, the middle and the last time.

    eps must be finite, in float32 and of x's shape. The variance must be there if `learned_variance` is True, and only
    then. No output may carry a graph, because nothing asked for a graph.
    """
    for t in p.times:
        got = p.backbone.predict(p.x, t, p.condition)
        parts = {"eps": got.eps, "variance": got.variance, "x0": got.x0}
        if got.eps is None:
            yield wrong(f"eps is missing at t = {t:g}.")
        if (got.variance is not None) != p.backbone.learned_variance:
            is_it = "there" if got.variance is not None else "missing"
            yield wrong(f"variance is {is_it} at t = {t:g}, but learned_variance is {p.backbone.learned_variance}.")
        for name, value in parts.items():
            if value is None:
                continue
            if value.shape != p.x.shape or value.dtype != torch.float32:
                yield wrong(f"{name} is {kind_of(value)} at t = {t:g}; make it {tuple(p.x.shape)} float32.")
            elif not torch.isfinite(value).all():
                yield wrong(f"{name} is not finite at t = {t:g}; in half precision try bfloat16.")
            elif value.requires_grad:
                yield wrong(f"{name} carries a graph though nothing asked for one: are the parameters frozen?")
        if got.features is not None:
            yield wrong("features came back without a layer being named; give None.")
    return f"eps is {kind_of(p.x)} and finite at t = {', '.join(f'{t:g}' for t in p.times)}"


def determinism(p: Probe) -> Verdicts:
    before = torch.get_rng_state()
    gap = difference(p.predict(p.x).eps, p.eps)
    if gap > p.tolerance / 100:
        yield wrong(f"two predictions of the same x differ by {gap:.1e} (relative): something draws at random.")
    if not torch.equal(before, torch.get_rng_state()):
        yield wrong("a prediction draws from torch's global generator; a backbone draws nothing.")
    return "the same x gives the same eps twice" + (f", to {gap:.0e}" if gap else "")


def batch(p: Probe) -> Verdicts:
    gaps = [
        difference(p.backbone.predict(p.x[i : i + 1], t, p.condition[i : i + 1]).eps, whole[i : i + 1])
        for t in (p.times[0], p.times[1])
        for whole in [p.predict(p.x, t).eps]
        for i in (0, B - 1)
    ]
    if max(gaps) > p.tolerance:
        yield wrong(
            f"eps of an image changes by {max(gaps):.1e} (relative) with what shares its batch; normalise within "
            "images, not over the batch."
        )
    return f"an image alone and in a batch of {B} has the same eps, to {max(gaps):.0e}"


def conditions(p: Probe) -> Verdicts:
    """Check the conditions of known names and the null condition, for one image and for three images."""
    b = p.backbone
    for n in (1, B):
        for name, value in (("condition", b.condition(p.names[:n])), ("null", b.null(n))):
            if len(value) != n:
                yield wrong(f"{name} of {counted(n, 'image')} has {counted(len(value), 'row')}; give one an image.")
                continue
            eps = b.predict(p.x[:n], p.times[1], value).eps
            if eps.shape != p.x[:n].shape or not torch.isfinite(eps).all():
                yield wrong(f"with {name} of {counted(n, 'image')} eps is {kind_of(eps)}, or not finite.")
    one, among = b.condition(p.names[1:2]), b.condition(p.names)[1:2]
    gap = difference(b.predict(p.x[:1], p.times[1], one).eps, b.predict(p.x[:1], p.times[1], among).eps)
    if gap > p.tolerance:
        yield wrong(f"{p.names[1]!r} means another thing alone than among {p.names} (eps moves by {gap:.1e}).")
    return f"{', '.join(dict.fromkeys(p.names))} and null() work for 1 and {B} images"


def unknown_class(p: Probe) -> Verdicts:
    if p.backbone.unconditional:
        return "this backbone knows no classes, so every name of a class means the same"
    if not p.backbone.class_names:
        return "this backbone takes prompts, so any name of a class means something"
    name = "no such class, surely"
    try:
        p.backbone.condition([name])
    except DapError as error:
        if name not in str(error):
            yield warn(f"the error does not name the unknown class: {said(error)}")
        return f"an unknown class is refused in a sentence: {said(error)[:60]}…"
    except Exception as error:
        yield wrong(
            f"condition([{name!r}]) raises {said(error)}; raise dap.base.errors.DapError with both lists of names."
        )
    else:
        yield wrong(
            f"condition([{name!r}]) was accepted; raise dap.base.errors.DapError, or every typing error costs a set."
        )
    return ""


def condition_matters(p: Probe) -> Verdicts:
    b, n = p.backbone, len(p.x)
    if b.unconditional:
        return "this backbone knows no classes: only real images bring a class into its images"
    cond = [b.predict(p.x, t, p.condition).eps for t in p.times[:2]]
    null = [b.predict(p.x, t, b.null(n)).eps for t in p.times[:2]]
    gap = max(difference(c, v) for c, v in zip(cond, null, strict=True))
    if gap < 1e-4:
        yield warn(f"a class changes eps by only {gap:.0e} against null: it is ignored, or the weights are untrained.")
    return f"a class changes eps by {gap:.0e} (relative) against null()"


def state(p: Probe) -> Verdicts:
    held = p.backbone.state()
    if not held:
        yield wrong("state() is empty; return every tensor that decides a prediction, by name.")
    digest = p.backbone.weights_hash()
    if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
        yield wrong(f"weights_hash() is {digest!r}; give the 64 hex digits of a sha256.")
    elif p.backbone.weights_hash() != digest:
        yield wrong("weights_hash() differs from call to call; hash only what state() returns, in a fixed order.")
    return f"{counted(len(held), 'tensor')}, hash {digest[:12]}…, the same twice"


def findings(backbone: Backbone, images: Tensor | None = None) -> Iterator[Finding]:
    """The findings of all checks. Each finding comes as soon as it is made."""
    checks = {
        "description": description,
        "schedule": schedule,
        "frozen": frozen,
        "prediction": prediction,
        "determinism": determinism,
        "batch": batch,
        "conditions": conditions,
        "unknown class": unknown_class,
        "condition matters": condition_matters,
        **features.CHECKS,
        **autoencoder.CHECKS,
        "state": state,
    }
    return run(checks, Probe(backbone, images))
