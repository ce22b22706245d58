"""`dap push`: put a set on the Hugging Face hub as a data set with its card."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dap.base.errors import DapError, first_line
from dap.base.files import expanded
from dap.base.parsing import counted, shown
from dap.base.permission import is_code
from dap.base.watch import Watcher
from dap.data.real.sources import EMBEDDED
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import LAYOUTS, export, left_behind, made_by
from dap.evaluation.current import keys_now, of_these_images
from dap.methods import find
from dap.verbs.exchange.soft import logits_of
from dap.verbs.recorded import recorded_data

USUAL = frozenset({".gitattributes", "README.md"})
"""Files that a new data set on the hub may have."""


def push(
    made: DistilledSet | str | Path,
    to: str,
    *,
    layout: str = "parquet",
    private: bool = False,
    allow_near_copies: bool = False,
    replace: bool = False,
    labels: str | Path | None = None,
    watcher: Watcher = Watcher(),
) -> str:
    """Export a set and upload it as a data set of the hub, with a card that names the licences of its data and its backbone.

    Everything that can be refused is refused before the set is exported, and the hub is asked first who you are. What the
    repository holds is replaced only if you say so.

    Args:
        made: the set, or its folder.
        to: the repository, as owner/name. It is made if it is not there.
        layout: "parquet", "imagefolder" or "webdataset", which the hub's viewer and `datasets.load_dataset` read.
        private: whether a new repository is private.
        allow_near_copies: upload a set that holds flagged near-copies of real images, that was never searched for them, or whose
            method begins at real images (`Method.from_reals`).
        replace: replace the files of a repository that holds some.
        labels: soft labels that go with the images: a folder of `dap export --layout labels`.
        watcher: is told of every exported image.

    Returns:
        The address of the data set.

    Raises:
        DapError: the set is not whole, it holds near-copies, was not searched for them or begins at real images, there is no
            token or the token may not write there, the repository holds other files, or the hub cannot be reached.
    """
    made = made if isinstance(made, DistilledSet) else DistilledSet.open(made)
    check_layout(layout)
    made.check_whole()
    if not allow_near_copies:
        check_near_copies(made)
    soft = None if labels is None else logits_of(made, labels)
    for told in left_behind(made) if labels is None else ():
        watcher.note(told)
    with _explained(to):
        api = _hub(to)
        _check_free(api, to, replace)
        with tempfile.TemporaryDirectory(prefix="dap-push-") as place:
            folder = Path(place) / "set"
            export(
                made,
                folder,
                layout,
                logits=soft,
                progress=lambda done, of, name: watcher.images(to, done, of, name),
            )
            address = api.create_repo(to, repo_type="dataset", private=private, exist_ok=True)
            api.upload_folder(
                repo_id=to,
                repo_type="dataset",
                folder_path=str(folder),
                commit_message=f"{len(made.records)} images of {len(made.class_names)} classes by diffusion-as-priors",
                delete_patterns=["*"] if replace else None,
            )
    return str(address)


def check_layout(layout: str) -> None:
    """Raise `DapError` if sets are not pushed in this layout."""
    if layout not in ("parquet", "imagefolder", "webdataset"):
        known = "; the hub does not show it" if layout in LAYOUTS else ""
        raise DapError(f"A set is pushed as parquet, imagefolder or webdataset, and not as {layout!r}{known}.")


def check_near_copies(made: DistilledSet) -> None:
    """Check that a set was searched for near-copies of real training images, holds none, and does not begin at real images.

    Raises:
        DapError: it was not, or was searched for those of other images than it was made of, or it does.
    """
    said = made.noted("images.json")
    listed = said.get("images", []) if isinstance(said, Mapping) else []
    stale = bool(listed) and not of_these_images(said, made.records, keys_now(made.records, made.class_names))
    listed = [] if stale else listed
    known = {one["path"]: one for one in listed if one.get("copy") is not None}
    whole = {line["path"] for line in made.records} <= set(known)
    copies = [one for one in listed if one.get("copy") is True]
    first = ", ".join(shown(one["path"]) for one in copies[:3])
    flagged = f"{len(copies)} of {len(made.records)} images of {shown(made.path)} are flagged as near-copies of real training "
    flagged += "images"
    if _from_reals(made):  # whatever a search finds, such a set is refused, so none is asked for
        also = ", although none is flagged as a near-copy" if whole and not copies else ""
        also = f". {flagged} ({first})" if copies else also
        raise DapError(
            f"{shown(made.path)} was made by {made_by(made)['method']}, whose images are real or begin at real ones, so they may "
            f"show private ones{also}. Add --allow-near-copies only if everybody may see the real images."
        )
    rest = "Or add --allow-near-copies if everybody may see the real images."
    search = f"Run dap evaluate {shlex.quote(shown(made.path))}"
    path = str(recorded_data(made).get("path") or "")
    if path == EMBEDDED or (path and expanded(path).is_dir()):
        search += " without --data and --out, which searches for those that it was made of"
    else:  # an import, a set of images in memory, or one that was made on another machine
        search += " --data FOLDER without --out, with the folder of the real images that it was made of, which searches for those"
    search += ", and notes in the folder of the set what it found"
    if not whole:
        raise DapError(
            f"{shown(made.path)} was not searched for near-copies of real training images{' since its images changed' * stale}, "
            f"so it may show private ones. {search}. {rest}"
        )
    searched, of = said.get("data"), (made.noted("inputs.json") or {}).get("data")
    if None not in (searched, of) and searched != of:
        raise DapError(
            f"{shown(made.path)} was last searched for near-copies of other real images than it was made of. {search}. {rest}"
        )
    if copies:
        raise DapError(f"{flagged} ({first}). Look at them with dap report. {rest}")


def _from_reals(made: DistilledSet) -> bool:
    """Whether the images of a set are real ones or begin at real ones, by its method. False for methods of others, whose code is
    not run to be asked."""
    recipe = made_by(made)
    try:
        method = find(str(recipe.get("method"))) if not is_code(str(recipe.get("method"))) else None
    except DapError:  # a set of another version, or of another program
        return False
    options = recipe.get("options")
    begun = options.get("init") if isinstance(options, Mapping) else None
    return method is not None and method.from_reals and begun != "noise"


def owner_and_name(to: str) -> tuple[str, str]:
    """The two parts of the name of a repository. Raises `DapError` if it is none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, _, name = to.partition("/")
    try:
        validate_repo_id(to)
    except HFValidationError:
        name = ""
    if not (owner and name):
        raise DapError(f"{to!r} names no data set of the hub; give owner/name, such as ada/flowers-10.")
    return owner, name


def _hub(to: str) -> Any:
    """The client of the hub, of a person who may write to a repository.

    Raises:
        DapError: the name of the repository is none, the hub is switched off, there is no token, or the token may not write.
    """
    from huggingface_hub import HfApi, is_offline_mode

    owner, name = owner_and_name(to)
    if is_offline_mode():
        raise DapError("HF_HUB_OFFLINE forbids to ask the hub; unset it to push a set.")
    api = HfApi()
    me = api.whoami()
    token = ((me.get("auth") or {}).get("accessToken") or {}) if isinstance(me, Mapping) else {}
    if token.get("role") == "read":
        raise DapError("The token may only read; make one that may write at huggingface.co/settings/tokens.")
    places = [str(me.get("name")), *(str(one.get("name")) for one in me.get("orgs") or [])]
    if owner not in places:
        raise DapError(f"You may write as {', '.join(places)} on the hub, and not as {owner}; give {places[0]}/{name}.")
    return api


def _check_free(api: Any, to: str, replace: bool) -> None:
    if replace or not api.repo_exists(to, repo_type="dataset"):
        return
    others = sorted(set(api.list_repo_files(to, repo_type="dataset")) - USUAL)
    if others:
        raise DapError(
            f"{to} holds {counted(len(others), 'file')} already ({', '.join(map(shown, others[:3]))}); choose another name, "
            "or add --replace to replace them all."
        )


@contextmanager
def _explained(to: str) -> Iterator[None]:
    """Errors of the hub and of the network inside this block as sentences."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise DapError(
            "There is no token for the hub; run hf auth login, or set HF_TOKEN to a token that may write."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise DapError("The hub does not know this token; run hf auth login again, or set HF_TOKEN.") from error
        if status in (403, 404):
            raise DapError(
                f"The token may not write to {to}; give it the right to write there, or choose a name of yours."
            ) from error
        raise DapError(f"The hub refused {to}: {first_line(error)}. Try again later; nothing is lost here.") from error
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise DapError(f"The hub cannot be reached ({first_line(error)}); try again with a network.") from error
