"""Checks of a backbone: features, the graph behind them, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dap.backbones.modules import ModuleBackbone
from dap.backbones.outputs import tokens
from dap.base.parsing import counted
from dap.guidance.base import GradThrough
from dap.testing.findings import Verdicts, difference, kind_of, slope, wrong
from dap.testing.probe import B, Probe


def _everywhere(p: Probe) -> Mapping[str, Tensor]:
    """The features at every layer. A `ModuleBackbone` gives all of them in one pass, other backbones layer by layer."""
    backbone, x, t, condition = p.backbone, p.x[:2], p.times[1], p.condition[:2]
    if not isinstance(backbone, ModuleBackbone):
        return {layer: backbone.tap(x, t, condition, layer) for layer in backbone.layers}
    found: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[..., None]:
        def hook(module: object, args: object, output: object) -> None:
            found[layer] = tokens(output)

        return hook

    handles = [backbone.module(layer).register_forward_hook(keep(layer)) for layer in backbone.layers]
    try:
        with torch.no_grad():
            backbone.predict(x, t, condition)
    finally:
        for handle in handles:
            handle.remove()
    return found


def features(p: Probe) -> Verdicts:
    seen = _everywhere(p)
    for layer in p.backbone.layers:
        if layer not in seen:
            yield wrong(f"layer {layer!r} is never reached by a prediction; take it off layers.")
        elif not isinstance(seen[layer], Tensor) or seen[layer].ndim != 3 or len(seen[layer]) != 2:
            yield wrong(f"layer {layer!r} gives {kind_of(seen[layer])} for 2 images; make it (2, tokens, width).")
        elif not torch.isfinite(seen[layer]).all():
            yield wrong(f"layer {layer!r} gives features that are not finite.")
    shapes = list(dict.fromkeys(tuple(value.shape[1:]) for value in seen.values()))
    return f"finite (B, tokens, width) at all {counted(len(seen), 'layer')}, of {', '.join(f'{a} × {b}' for a, b in shapes)}"


def tap(p: Probe) -> Verdicts:
    worst = 0.0
    for layer in p.layers:
        got = p.predict(p.x, layer=layer)
        tapped = p.backbone.tap(p.x, p.times[1], p.condition, layer)
        if got.features is None or got.features.shape != tapped.shape:
            yield wrong(
                f"at {layer!r} predict gives {kind_of(got.features)}, tap {kind_of(tapped)}; make them the same."
            )
            continue
        gap = difference(tapped, got.features)
        if gap > p.tolerance:
            yield wrong(f"at layer {layer!r} tap differs from predict's features by {gap:.1e} (relative).")
        if tapped.requires_grad:
            yield wrong(f"at layer {layer!r} tap carries a graph; run it under torch.no_grad().")
        gap_eps = difference(got.eps, p.eps)
        if gap_eps > p.tolerance:
            yield wrong(f"asking for layer {layer!r} changes eps by {gap_eps:.1e} (relative); only look, do not touch.")
        worst = max(worst, gap)
    return f"tap equals predict's features at {', '.join(p.layers)}, to {worst:.0e}"


def graph(p: Probe) -> Verdicts:
    """Check that the right outputs carry a graph to x under grad_through="features" and "denoiser", and that eps stays."""
    for layer in p.layers:
        x = p.x.clone().requires_grad_()
        with torch.enable_grad():
            got = p.backbone.predict(x, p.times[1], p.condition, layer=layer, grad_through="features")
            if not torch.is_grad_enabled():
                yield wrong(f"at layer {layer!r} predict leaves gradients switched off; restore the mode it found.")
        if got.features is None or not got.features.requires_grad:
            yield wrong(f"under 'features' the features of layer {layer!r} carry no graph to x, so nothing can guide.")
        for name, value in (("eps", got.eps), ("variance", got.variance), ("x0", got.x0)):
            if value is not None and value.requires_grad:
                yield wrong(
                    f"under 'features' {name} carries a graph past layer {layer!r}; detach it there, it costs memory."
                )
        gap = difference(got.eps, p.eps)
        if gap > p.tolerance:
            yield wrong(f"under 'features' at layer {layer!r} eps changes by {gap:.1e} (relative).")
    got = p.predict(p.x.clone().requires_grad_(), through="denoiser")
    if not got.eps.requires_grad:
        yield wrong("under 'denoiser' eps carries no graph to x.")
    gap = difference(got.eps, p.eps)
    if gap > p.tolerance:
        yield wrong(f"under 'denoiser' eps changes by {gap:.1e} (relative).")
    return "under 'features' the features alone carry a graph to x, under 'denoiser' eps does; eps is unchanged"


def gradient(p: Probe) -> Verdicts:
    """Compare directional derivatives by autograd and by finite differences, of features at up to three layers and of eps."""
    if p.half:
        return f"gradients are not compared with finite differences, because in {p.half} they drown in rounding; check in float32"

    def function(layer: str | None, through: GradThrough) -> Callable[[Tensor], Tensor]:
        def of(x: Tensor) -> Tensor:
            got = p.predict(x, layer=layer, through=through if x.requires_grad else "nothing")
            output = got.eps if layer is None else got.features
            assert output is not None
            return output

        return of

    targets = {f"features of layer {layer!r}": function(layer, "features") for layer in p.layers}
    targets["eps"] = function(None, "denoiser")
    worst, allowed = 0.0, 0.1 if p.backbone.device.type == "cuda" else 0.03
    for name, of in targets.items():
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            by_graph, by_difference = slope(of, p.x)
        if by_difference == 0:
            yield wrong(f"the {name} do not depend on x at all.")
            continue
        gap = abs(by_graph / by_difference - 1)
        if not gap <= allowed:
            yield wrong(
                f"{name}: the gradient says {by_graph:.4g} along a random direction, a finite difference "
                f"{by_difference:.4g}; something on the way from x is detached or not differentiable."
            )
        worst = max(worst, gap)
    return f"equals a finite difference at layers {', '.join(p.layers)} and for eps, to {worst:.0e} for batches of {B}"


CHECKS = {"features": features, "tap": tap, "graph": graph, "gradient": gradient}
