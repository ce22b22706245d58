"""What an import tells the user: the choices that were made, in sentences."""

from __future__ import annotations

from typing import Any

from dap.base.parsing import counted
from dap.data.real.names import some
from dap.data.sets.beside import KEPT

COUNTED = ("loose", "unnamed")
"""Facts about what is left out, which imports of earlier versions do not have."""


def notes_of(told: dict[str, Any]) -> list[str]:
    """Sentences that tell the user which choices were made."""
    there, facts, images = told["images_a_class_there"], told["facts"], told["images"]
    count = counted(there[0], "image") if len(there) == 1 else f"{there[0]} to {there[-1]} images"
    how = {"natural": "the first in natural order", "string": "the first in string order (0, 1, 10, 11, …)"}
    drawn = how.get(told["pick"], f"a random draw, seed {told['seed']}")
    taken = f"{told['ipc']} of {count} a class, {drawn}" if there != [told["ipc"]] else f"all {count} a class"
    notes = [
        f"Layout: {told['layout']} ({told['layout_found']}).",
        f"Class order: {told['class_order']}: {some(told['classes'], 4)}.",
    ]
    kept = f"; {images['kept_to_the_byte']} kept to the byte, {images['stored_anew']} stored anew as PNG"
    notes.append(f"Images: {taken}{kept if told['layout'] != 'tensors' else ''}.")
    if len(images["sizes"]) > 1:
        notes.append(f"The images differ in size ({some(images['sizes'])}); dap evaluate crops and resizes them.")
    if "left_out" in facts:
        notes.append(f"Left out: the class folders {some(facts['left_out'])}.")
    if "empty" in facts:
        notes.append(f"Empty, and so no class of the set: {some(facts['empty'], 10)}.")
    if "skipped" in facts:
        kinds = some([f"{count} {end}" for end, count in facts["skipped"].items()], 6)
        skipped = sum(facts["skipped"].values())
        are = "is no image" if skipped == 1 else "are no images"
        notes.append(f"Skipped: {counted(skipped, 'file')} that {are} ({kinds}).")
    for key, lies, lie in (
        ("loose", "lies in no class folder", "lie in no class folder"),
        ("unnamed", "lies in data and is not named in labels.json", "lie in data and are not named in labels.json"),
    ):
        if facts.get(key):
            where = lies if facts[key] == 1 else lie
            notes.append(f"Left out: {counted(facts[key], 'image')} that {where}.")
    if "values" in facts:
        notes.append(f"Values: {facts['values']}.")
    if facts.get("of_values"):
        share = facts["clipped_values"] / facts["of_values"]
        notes.append(
            f"Clipped to [0, 1]: {facts['clipped_values']} of {facts['of_values']} values ({share:.2%}), by at most "
            f"{facts['furthest_outside']:.4g}; 8 bits moved the others by at most {facts['largest_rounding_error']:.4g}."
        )
    if told["weights"]:
        notes.append("Each image has a weight, which is kept; protocols with weights: manifest use it.")
    if told["soft_labels"]:
        notes.append(f"Each image has soft labels, which are kept in {KEPT}: --teacher SET/{KEPT} trains on them.")
    notes += [f"{name.capitalize()}: {facts[name]}." for name in ("labels", "axes") if name in facts]
    return notes
