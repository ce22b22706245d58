"""`dap push` against a hub that is not there: what is uploaded, and what is refused before anything is made."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from dap.cli.main import main
from dap.data.sets.cards import licence_fields, read_card, without_places
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import export
from dap.data.sets.imports import import_set
from dap.verbs.exchange import push as room

ME = {"name": "ada", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}


class Hub:
    """A hub in a folder; `calls` are the names of what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.fails, self.me = folder, list[str](), dict[str, Exception](), ME

    def __call__(self) -> Hub:
        return self

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def whoami(self) -> dict:
        self._called("whoami")
        return self.me

    def repo_exists(self, repo_id: str, repo_type: str) -> bool:
        self._called("repo_exists")
        return (self.folder / repo_id).exists()

    def list_repo_files(self, repo_id: str, repo_type: str) -> list[str]:
        place = self.folder / repo_id
        return [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        self._called("create_repo")
        assert repo_type == "dataset" and exist_ok
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        (self.folder / repo_id / ".gitattributes").write_text(f"private {private}")
        return f"https://hub/datasets/{repo_id}"

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: str, delete_patterns=None, **_: object
    ) -> None:
        self._called("upload_folder")
        for path in Path(folder_path).rglob("*"):
            place = self.folder / repo_id / path.relative_to(folder_path)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                place.write_bytes(path.read_bytes())
        self.deleted = delete_patterns


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    return made


@pytest.fixture
def made(tmp_path) -> DistilledSet:
    """A set of two classes that was searched for near-copies, and has none."""
    found = DistilledSet.create(tmp_path / "set", ("ant", "bee"), 2, {"method": "x"})
    for label, slot in found.missing():
        found.add(label, slot, torch.rand(3, 8, 8), seed=1, weight=1.0)
    fields = licence_fields("CC-BY-4.0", "dit", "CC-BY-NC-4.0")
    found.note(
        "README.md", "---\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "---\n\n# A set\n"
    )
    searched(found)
    return found


def searched(made: DistilledSet, **copies: bool) -> None:
    lines = [{"path": line["path"], "copy": copies.get(Path(line["path"]).stem, False)} for line in made.records]
    made.note("images.json", {"features": "pixels", "judged": "k", "images": lines})


def test_the_set_arrives_whole_with_its_card(hub, made, tmp_path, capsys):
    assert main(["push", str(made.path), "ada/insects", "--private", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["address"] == "https://hub/datasets/ada/insects"
    assert hub.calls == ["whoami", "repo_exists", "create_repo", "upload_folder"] and hub.deleted is None
    place = tmp_path / "hub" / "ada" / "insects"
    assert (place / ".gitattributes").read_text() == "private True"
    back = import_set(place, tmp_path / "back")
    assert [line["sha256"] for line in back.records] == [line["sha256"] for line in made.records]
    assert [line["weight"] for line in back.records] == [1.0] * 4
    front, _ = read_card(place)
    assert (front["licence_of_data"], front["backbone"], front["licence_of_backbone"]) == (
        "CC-BY-4.0",
        "dit",
        "CC-BY-NC-4.0",
    )
    assert front["license"] == "other" and front["configs"][0]["data_files"][0]["path"] == "data/train-*"


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset"])
def test_other_layouts(hub, made, tmp_path, layout):
    assert main(["push", str(made.path), "lab/insects", "--layout", layout]) == 0
    assert import_set(tmp_path / "hub" / "lab" / "insects", tmp_path / "back").class_names == ("ant", "bee")


@pytest.mark.parametrize(
    ("recipe", "refuses"),
    [
        ({"method": "auto"}, True),
        ({"method": "dm"}, True),
        ({"method": "dm", "options": {"init": "noise"}}, False),
        ({"method": "random+refine"}, True),
        ({"method": "vanilla"}, False),
        ({"method": "vanilla+refine"}, False),
        ({"method": "nothing.py:Mine"}, False),
        ({}, False),
    ],
)
def test_a_set_that_begins_at_real_images_is_refused_though_none_is_flagged(hub, capsys, tmp_path, recipe, refuses):
    made = DistilledSet.create(tmp_path / "set", ("ant", "bee"), 1, recipe)
    for label, slot in made.missing():
        made.add(label, slot, torch.rand(3, 8, 8), seed=1, weight=1.0)
    searched(made)
    if refuses:
        said = refused(capsys, made.path, "ada/x")
        assert f"was made by {recipe['method']}" in said and "--allow-near-copies" in said and hub.calls == []
    assert main(["push", str(made.path), "ada/x", *["--allow-near-copies"] * refuses]) == 0


def refused(capsys, *args: object) -> str:
    assert main(["push", *map(str, args)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dap: error: ") and said.count("\n") == 1
    return said


def test_near_copies_are_refused_unless_told(hub, made, capsys):
    searched(made, **{"00001": True})
    said = refused(capsys, made.path, "ada/x")
    assert (
        "2 of 4 images" in said and "images/ant/00001.png" in said and "--allow-near-copies" in said and hub.calls == []
    )
    assert main(["push", str(made.path), "ada/x", "--allow-near-copies"]) == 0
    (made.path / "images.json").unlink()
    assert "was not searched for near-copies" in refused(capsys, made.path, "ada/y")
    searched(made)
    said = json.loads((made.path / "images.json").read_text())
    (made.path / "images.json").write_text(json.dumps(said | {"images": said["images"][:3]}))
    assert "was not searched for near-copies" in refused(capsys, made.path, "ada/y"), "one image was never looked at"
    (made.path / "images.json").write_text(json.dumps(said | {"judged": "0123456789abcdef:x"}))
    assert "real training images since its images changed" in refused(capsys, made.path, "ada/y")


def test_what_the_hub_holds_is_kept_unless_told(hub, made, tmp_path, capsys):
    assert main(["push", str(made.path), "ada/x"]) == 0
    said = refused(capsys, made.path, "ada/x")
    assert "ada/x holds 2 files already" in said and "--replace" in said and hub.calls[-1] == "repo_exists"
    assert main(["push", str(made.path), "ada/x", "--replace"]) == 0 and hub.deleted == ["*"]


def of_status(status: int) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
    return HfHubHTTPError(f"{status} refused", response=response)


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ({"whoami": LocalTokenNotFoundError("none")}, "run hf auth login, or set HF_TOKEN"),
        ({"whoami": of_status(401)}, "does not know this token"),
        ({"repo_exists": httpx.ConnectError("no route")}, "The hub cannot be reached (no route)"),
        ({"create_repo": of_status(403)}, "The token may not write to ada/x"),
        ({"upload_folder": of_status(500)}, "The hub refused ada/x: 500 refused"),
    ],
)
def test_what_goes_wrong_there_is_one_sentence(hub, made, capsys, fails, says):
    hub.fails = fails
    assert says in refused(capsys, made.path, "ada/x")


def test_wrong_names_and_tokens_are_told_before_any_export(hub, made, capsys, monkeypatch):
    monkeypatch.setattr(room, "export", lambda *args, **kwargs: pytest.fail("it was exported"))
    for to in ("insects", "ada/", "ada/x/y", "ada/a b"):
        assert "names no data set of the hub" in refused(capsys, made.path, to)
    assert "You may write as ada, lab on the hub, and not as bob; give ada/x" in refused(capsys, made.path, "bob/x")
    hub.me = ME | {"auth": {"accessToken": {"role": "read"}}}
    assert "may only read" in refused(capsys, made.path, "ada/x")
    assert "pushed as parquet, imagefolder or webdataset" in refused(capsys, made.path, "ada/x", "--layout", "pt")
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    assert "HF_HUB_OFFLINE" in refused(capsys, made.path, "ada/x")
    (made.path / made.records[0]["path"]).unlink()
    assert "is not whole" in refused(capsys, made.path, "ada/x")


def test_a_licence_that_data_and_backbone_share_is_the_licence_of_the_set():
    assert licence_fields("MIT (Zalando SE, 2017)", "starter", "MIT")["license"] == "mit"
    assert licence_fields("CC0-1.0")["license"] == "cc0-1.0"
    for others in (("MIT", "x", "CC-BY-NC-4.0"), ("unknown; ask",), ("cc-by-4.0-nc",), ("MITx",)):
        assert licence_fields(*others)["license"] == "other"


def test_an_import_is_still_of_the_method_that_made_its_images(hub, capsys, tmp_path):
    """The guard was gone for an import of a set, for an import of that import, and for one of its export."""
    made = DistilledSet.create(tmp_path / "set", ("ant", "bee"), 1, {"method": "dm"})
    for label, slot in made.missing():
        made.add(label, slot, torch.rand(3, 8, 8), seed=1)
    export(made, tmp_path / "parquet", "parquet")
    first = import_set(made.path, tmp_path / "first")
    for number, source in enumerate((first.path, tmp_path / "parquet")):
        again = import_set(source, tmp_path / f"again{number}")
        searched(again)
        assert "was made by dm" in refused(capsys, again.path, "ada/x")
        assert import_set(source, again.path).path == again.path


def test_a_set_must_be_searched_for_the_images_that_it_was_made_of(hub, made, capsys):
    """A later evaluation on other data took the flags away."""
    made.note("inputs.json", {"classes": ["ant", "bee"], "data": "a" * 64, "weights": None})
    said = made.noted("images.json")
    made.note("images.json", {**said, "data": "b" * 64})
    told = refused(capsys, made.path, "ada/x")
    assert (
        "searched for near-copies of other real images than it was made of" in told
        and "--data FOLDER without --out" in told
    )
    made.note("images.json", {**said, "data": "a" * 64})
    assert main(["push", str(made.path), "ada/x"]) == 0
    made.note("images.json", said)
    assert main(["push", str(made.path), "ada/y"]) == 0, "earlier versions did not say what was searched"


@pytest.mark.parametrize("layout", ["parquet", "imagefolder"])
def test_the_card_tells_how_the_set_was_made_and_judged_and_no_name_of_a_user(hub, tmp_path, layout):
    home = "/home/ada/photos"
    recipe = {"method": "x", "data": {"path": home, "size": 8}, "backbone": {"path": "C:\\Users\\ada\\bb"}, "ipc": 1}
    made = DistilledSet.create(tmp_path / "set", ("ant", "bee"), 1, recipe)
    for label, slot in made.missing():
        made.add(label, slot, torch.rand(3, 8, 8), seed=1)
    made.note("README.md", f"---\nbackbone: {home}/bb\n---\n\n# A set\n\n| real data | {home} |\n")
    made.note("command.txt", f"dap distill --data {home} --out=/home/ada/runs/x --ipc 1\n")
    lines = [
        {"protocol": "quick-hard", "network": "convnet3", "last": last, "best": 0.9, "seed": k, "headline": "last"}
        for k, last in enumerate((0.5, 0.52))
    ]
    made.note("trials.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    searched(made)
    assert main(["push", str(made.path), "ada/x", "--layout", layout]) == 0
    place = tmp_path / "hub" / "ada" / "x"
    card = (place / "README.md").read_text()
    assert "| quick-hard | convnet3 | test | last | 2 | 51.0 ± 1.4 |" in card
    assert "dap distill --data photos --out=x --ipc 1" in card and "path: photos" in card and "path: bb" in card
    for file in place.rglob("*"):
        assert not file.is_file() or (b"home/ada" not in file.read_bytes() and b"Users" not in file.read_bytes()), file
    back = import_set(place, tmp_path / "back")
    assert str(tmp_path) not in (back.path / "README.md").read_text()


def test_only_paths_are_shortened():
    kept = ["facebook/DiT-XL-2-256", "fashion-mnist", "a photo", "https://a.b/c/d", "linear + 0.5 * rbf", "runs/mine"]
    assert without_places(kept) == kept
    assert without_places(["/a/b.py:Name", "~/x", "./x/y", "..\\x", "C:\\a\\b", "a/b/c/"]) == [
        "b.py:Name",
        "x",
        "y",
        "x",
        "b",
        "c",
    ]
    assert without_places({"template": "/a/{}", "path": "/a/b"}) == {"template": "/a/{}", "path": "b"}


@pytest.mark.parametrize("kind", ["set", "moved set", "import", "import of an export"])
def test_the_advice_to_search_for_near_copies_can_be_followed(hub, colours, tmp_path, capsys, kind):
    """An import does not know its real images, and the advice did not name them."""
    recipe = {"method": "vanilla", "ipc": 1, "seed": 0, "data": {"path": str(colours), "size": 8}}
    made = DistilledSet.create(tmp_path / "my set", ("blue", "green", "red"), 1, recipe)
    for label, slot in made.missing():
        made.add(label, slot, torch.rand(3, 8, 8), seed=1)
    if kind == "moved set":
        made.note("recipe.json", recipe | {"data": {"path": "images in memory", "size": 8}})
        made = DistilledSet.open(made.path)
    elif kind != "set":
        source = made.path
        if kind == "import of an export":
            source = tmp_path / "parquet"
            export(made, source, "parquet")
        made = import_set(source, tmp_path / "my import")
    said = refused(capsys, made.path, "ada/x")
    assert "was not searched for near-copies" in said and ("--data FOLDER" in said) == (kind != "set")
    advice = shlex.split(
        said.partition("Run dap ")[2].replace(" without", ",").partition(",")[0].replace("FOLDER", str(colours))
    )
    fast = ["size=8", "width=2", "epochs=1", "mean=[0.5]", "std=[0.25]"]
    more = [word for one in fast for word in ("--set", one)]
    assert main([*advice, "--networks", "convnet1", *more]) == 0, capsys.readouterr().err
    assert main(["push", str(made.path), "ada/x"]) == 0, capsys.readouterr().err
    if "import" in kind:
        return
    capsys.readouterr()
    made.note("inputs.json", {"classes": list(made.class_names), "data": "a" * 64, "weights": None})
    said = refused(capsys, made.path, "ada/y")
    assert "of other real images than it was made of" in said and ("--data FOLDER" in said) == (kind != "set")


def test_no_search_is_asked_for_where_none_can_help(hub, made, capsys):
    """Whoever searched, as told, was refused all the same."""
    made.note("recipe.json", {"method": "dm"})
    for copies in (None, {}, {"00001": True}):
        (made.path / "images.json").unlink(missing_ok=True)
        if copies is not None:
            searched(made, **copies)
        said = refused(capsys, made.path, "ada/x")
        assert "was made by dm" in said and "evaluate" not in said and " Or " not in said
        assert ("none is flagged" in said) == (copies == {}) and ("2 of 4 images" in said) == bool(copies)
        assert "private ones" in said and "Add --allow-near-copies only if everybody may see the real images." in said
    assert main(["push", str(made.path), "ada/x", "--allow-near-copies"]) == 0
