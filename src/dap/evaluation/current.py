"""Which results are of the images that a set holds now. A set may have grown, or been made anew, since it was judged.

Every result names the images that it is of: a trial by its key "judged", and a note such as `measures.json` by the first part
of its field "judged". A result of other images is left out wherever results are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

NOTES = ("measures.json", "images.json", "zeroshot.json", "ranking.json")
"""The files of a set that are of its images, beside its trials."""
CHANGED = "real images"
"""The note of `measures.json` that says that a set was judged by other real images than it was made of."""
AGAIN = "The images of the set have changed since then; judge it again"


def hash_of(value: Any) -> str:
    """Sixteen digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def key_of(hashes: Sequence[str], class_names: Sequence[str] = (), labels: Sequence[int] = ()) -> str:
    """The key "judged" of images: of their hashes alone, or of their hashes, the class names and their labels.

    Args:
        hashes: the sha256 of each image, in the order of labels and slots.
        class_names, labels: empty where the test data and the order of the images say them; see `judge`.
    """
    return hash_of([list(hashes), class_names, labels] if labels else list(hashes))


def joined(images: str, rest: str) -> str:
    """The field "judged" of a note: the key of the images, and the key of all that decides the note."""
    return f"{images}:{rest}"


def same_note(written: object, key: str) -> bool:
    """Whether a note has this key. Versions before this one wrote its second part alone."""
    return written in (key, key.rpartition(":")[2])


def keys_now(images: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> frozenset[str]:
    """The keys "judged" that a result of these images may have; none where the hash of an image is not known.

    Args:
        images: the lines of a manifest, in the order of labels and slots.
        class_names: the names of the classes.
    """
    hashes = [image.get("sha256") for image in images]
    if not all(isinstance(one, str) and one for one in hashes):
        return frozenset()
    known = [str(one) for one in hashes]
    return frozenset({key_of(known), key_of(known, class_names, [image["label"] for image in images])} if known else ())


def of_images(line: Mapping[str, Any], keys: Collection[str]) -> bool:
    """Whether a line of `trials.jsonl` is of images with one of these keys "judged", as far as both are known."""
    return not keys or line.get("judged") in (None, *keys)


def key_of_ranking(
    trials: Sequence[Mapping[str, Any]], images: str, network: str, protocols: Mapping[str, str | None]
) -> str:
    """The field "judged" of `ranking.json`: of the images of a set, and of those of its trials that the scores come from.

    Args:
        trials: the lines of `trials.jsonl`.
        images: the key of the images.
        network: the network whose trials count.
        protocols: names of protocols by their roles; see `report.ranking`.
    """
    names = {name for name in protocols.values() if name}
    fields = ("judged", "tested", "by", "protocol", "epochs", "headline", "seed", "last", "best")
    used = [t for t in trials if t["network"] == network and t["protocol"] in names]
    return joined(images, hash_of(sorted(json.dumps([line.get(one) for one in fields]) for line in used)))


def images_of_ranking(trials: Sequence[Mapping[str, Any]], network: str, protocols: Mapping[str, str | None]) -> str:
    """The key of the images of the trials that scores come from; "" where they say none, or there are none."""
    names = {name for name in protocols.values() if name}
    judged = (str(t.get("judged") or "") for t in trials if t["network"] == network and t["protocol"] in names)
    return next(judged, "")


def ranking_counts(
    note: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], random: Sequence[Sequence[Mapping[str, Any]]] = ()
) -> bool:
    """Whether the scores in `ranking.json` come from these trials, as far as the file says it.

    Versions before this one said nothing of the random sets that a score compares with. Where none of these sets is at hand, it
    is not known whether they have changed.

    Args:
        note: what the file holds.
        trials: the trials of the set.
        random: the trials of each set at hand that its scores could be compared with.
    """
    judged, network, protocols = (note.get(name) for name in ("judged", "network", "protocols"))
    if not isinstance(judged, str) or not isinstance(network, str) or not isinstance(protocols, Mapping):
        return False
    if judged != key_of_ranking(trials, judged.partition(":")[0], network, protocols):
        return False
    said = note.get("random")
    used = {str(one) for one in said} if isinstance(said, list) else set[str]()
    now = {key_of_ranking(one, images_of_ranking(one, network, protocols), network, protocols) for one in random}
    # A set that was used and is not there, beside one that was not used, has other images or other trials by now. Where only
    # the first is true, somebody asks for some of the sets; where only the second is, there is one more.
    return used <= now or now <= used


def ranking_of(notes: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of what several folders of a set hold as `ranking.json`, the first that comes from these trials, else the first."""
    known = [note for note in notes if note]
    return next((note for note in known if ranking_counts(note, trials)), known[0] if known else {})


def of_these_images(note: Mapping[str, Any], images: Sequence[Mapping[str, Any]], keys: frozenset[str]) -> bool:
    """Whether a note is of these images, as far as the note says of what images it is.

    Args:
        note: what the file holds.
        images: the lines of the manifest.
        keys: what `keys_now` gives for these images.
    """
    judged = str(note.get("judged"))
    if keys and judged.find(":") > 0:  # before it nothing stands where trials do not say of what images they are
        return judged.partition(":")[0] in keys
    listed = note.get("images")  # versions before this one said the images by their paths alone
    if not isinstance(listed, list) or not listed:
        return True
    return {one.get("path") for one in listed if isinstance(one, Mapping)} == {image["path"] for image in images}
