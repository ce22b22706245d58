"""Sentences on images that a reader should look at: near-copies of real images, and images that are probably of nothing."""

from __future__ import annotations

from collections.abc import Sequence

from dap.base.parsing import shown
from dap.data.sets.notes import leaks
from dap.evaluation.report.groups import Group
from dap.evaluation.report.meanings import worded
from dap.evaluation.report.records import Json, SetRecord, is_number
from dap.evaluation.report.text import count


def inspected(record: SetRecord) -> dict[str, Json]:
    """The entries of `images.json` by the paths of the images."""
    images = record.inspected.get("images")
    listed = images if isinstance(images, list) else []
    return {one["path"]: one for one in listed if isinstance(one, dict) and isinstance(one.get("path"), str)}


def known(record: SetRecord) -> list[Json]:
    """The entries of the images of a set, where it is known of each of them whether it is a near-copy; [] else."""
    found = list(inspected(record).values())
    return found if all(isinstance(one.get("copy"), bool) for one in found) else []


def near_copies(groups: Sequence[Group]) -> list[str]:
    """Sentences about images that are near-copies of real training images, and about real images that are on both sides."""
    told = []
    for group in groups:
        for record in group.sets:
            real, rule = record.inspected.get("real") or {}, record.inspected.get("rule") or {}
            told += [f"{shown(record.path)}: {worded(sentence, record.noun)}" for sentence in leaks(real)]
            if rule.get("why"):
                told.append(
                    f"{shown(record.path)}: only exact copies of real {record.noun}s are flagged. {rule['why']}"
                )
        looks, noun = [(record, images) for record in group.sets if (images := known(record))], group.first.noun
        copies = [(record, one) for record, images in looks for one in images if one.get("copy") is True]
        total = sum(len(images) for _, images in looks)
        if not copies:
            continue
        unknown = len(group.sets) - len(looks)
        sets = f" in {len(looks)} sets" if len(looks) > 1 else ""
        sets += f" (the images of {count(unknown, 'further set')} were not all searched)" if unknown else ""
        if len(copies) == total:
            told.append(
                f"All {total:,} {noun}s{sets} of {group.label} are near-copies of real training {noun}s, "
                f"as a selection of real {noun}s is by nature: publish them only where the real {noun}s may be."
            )
            continue
        seeded = [f" of seed {record.seed}" if len(group.sets) > 1 else "" for record, _ in copies]
        where = [f"{record.class_name(one.get('label'))} slot {one.get('slot')}" for record, one in copies]
        places = [place + seed for place, seed in zip(where, seeded, strict=True)][:3]
        more = f" and {len(copies) - 3:,} more" if len(copies) > 3 else ""
        one = len(copies) == 1
        verb = "is flagged as a near-copy" if one else "are flagged as near-copies"
        verb += f" of a real training {noun}" if one else f" of real training {noun}s"
        rates, twins = [_rate(record) for record, _ in looks], [_twins(record) for record, _ in looks]
        fair = f"; so are about {100 * max(rates):.2g} % of {noun}s that copy nothing" if max(rates) else ""
        if max(twins) > max(rates):
            fair = f"; {100 * max(twins):.0f} % of the real {noun}s are as near to another real {noun} of their class"
        told.append(
            f"{len(copies):,} of {count(total, noun)}{sets} of {group.label} {verb}: "
            f"{', '.join(places)}{more}. Look at them before this set leaves your hands{fair}."
        )
    return told


def doubted(groups: Sequence[Group]) -> list[str]:
    """Sentences about images that are probably no images of anything, and about images of a kind that the backbone of a set has
    probably never seen."""
    told = []
    for group in groups:
        several, noun = len(group.sets) > 1, group.first.noun
        found = [(record, image) for record in group.sets for image in record.images if doubt(image)]
        if found:
            of = count(sum(len(record.images) for record in group.sets), noun) + f" in {len(group.sets)} sets" * several
            places = [
                f"{record.class_name(image['label'])} slot {image['slot']}"
                + f" of seed {record.seed}" * several
                + f" ({doubt(image)})"
                for record, image in found[:3]
            ]
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            are = f"is probably no {noun}" if len(found) == 1 else f"are probably no {noun}s"
            told.append(
                f"{len(found)} of {of} of {group.label} {are} of anything: {'; '.join(places)}{more}. "
                "An accuracy says little of such a set."
            )
        ratios = [float(value) for record in group.sets if is_number(value := record.env.get("strangeness"))]
        if ratios:
            path = group.first.value("backbone.path")
            name = shown(path)[:200] if isinstance(path, str) else "the backbone"
            told.append(
                f"The backbone of {group.label}, {name}, has probably never seen {noun}s like the real ones: it predicted their "
                f"noise {max(ratios):.2f} times as badly as a guess that knows only their mean and variance (trained weights: "
                f"0.2 to 0.5). So the {noun}s of this set do not show its classes, whatever their labels say."
            )
    return told


def doubt(image: Json) -> str:
    """Why an image is probably no image of anything, as its line in the manifest says; "" where it says nothing."""
    doubt = image.get("doubt")
    return shown(doubt)[:200] if isinstance(doubt, str) else ""


def _rate(record: SetRecord) -> float:
    """The share of fresh real images that the search is calibrated to flag; 0 where it is not recorded."""
    rule = record.inspected.get("rule")
    pixel = rule.get("pixel") if isinstance(rule, dict) else None
    rate = pixel.get("rate") if isinstance(pixel, dict) else None
    return rate if is_number(rate) else 0.0


def _twins(record: SetRecord) -> float:
    """The share of real images that the search would flag beside the others; 0 where it is not recorded."""
    rule = record.inspected.get("rule")
    share = rule.get("reals") if isinstance(rule, dict) else None
    return share if is_number(share) else 0.0
