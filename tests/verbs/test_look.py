"""`dap look`: everything that is planted is found and told, and nothing else is."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.names import drawn
from dap.data.real.sources import open_source
from dap.evaluation.current import key_of
from dap.starter import REFERENCE
from dap.verbs.looking.alike import BITS, SIDE, groups, near_pairs, outliers, perceptual, same
from dap.verbs.looking.look import look
from reported import make_set

CLASSES = ("across", "down", "slanting")


def striped(kind: int, number: int) -> Image.Image:
    """A picture of stripes that run as the class says, of an own phase, width and colour."""
    noise = np.random.default_rng([kind, number])
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    along = (y, x, (x + y) / 1.41)[kind]
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (noise.uniform(3, 5) * along + noise.uniform()))
    colours = np.array([[0.0], [0.6]]) + noise.uniform(0, 0.4, (2, 3))
    image = wave[..., None] * colours[0] + (1 - wave[..., None]) * colours[1]
    return Image.fromarray((255 * (0.9 * image + 0.1 * noise.uniform(size=image.shape))).astype(np.uint8))


def written(folder: Path, first: int, count: int) -> Path:
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            striped(kind, first + number).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "stripes"
    written(folder / "train", 0, 15)
    written(folder / "test", 100, 4)
    return folder


@pytest.fixture
def planted(clean, tmp_path) -> Path:
    """The same with one of everything that is looked for."""
    folder = shutil.copytree(clean, tmp_path / "stripes")
    shutil.copy(folder / "train" / "across" / "00.png", folder / "train" / "down" / "twin.png")
    Image.open(folder / "train" / "down" / "03.png").save(folder / "train" / "down" / "near.jpg", quality=85)
    shutil.copy(folder / "train" / "slanting" / "05.png", folder / "test" / "slanting" / "leak.png")
    Image.open(folder / "train" / "down" / "07.png").save(folder / "test" / "down" / "almost.jpg", quality=85)
    (folder / "train" / "across" / "broken.png").write_bytes(b"\x89PNG no")
    striped(2, 999).convert("L").save(folder / "train" / "slanting" / "grey.png")
    return folder


def test_everything_that_is_planted_is_found(planted, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["look", str(planted), "--out", str(sheet), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    train, test = found["parts"]["train"], found["parts"]["test"]
    assert found["kind"] == "images" and train["images"] == 49 and test["images"] == 14
    assert train["classes"] == {"across": 16, "down": 17, "slanting": 16}
    assert train["modes"] == {"RGB": 47, "L": 1} and train["formats"] == {"PNG": 47, "JPEG": 1}
    assert train["sizes"] == ["32x32"]
    assert [one["image"] for one in train["broken"]] == ["across/broken.png"]
    assert train["duplicates"] == [["across/00.png", "down/twin.png"]]
    assert train["near_duplicates"] == [["down/03.png", "down/near.jpg"]]
    (leaks,) = found["leaks"]
    assert (leaks["of"], leaks["among"]) == ("test", "train")
    assert leaks["same"] == [{"image": "slanting/leak.png", "like": "slanting/05.png"}]
    assert leaks["near"] == [{"image": "down/almost.jpg", "like": "down/07.png"}]
    with Image.open(sheet) as image:
        assert image.height == 3 * 68 and image.width > 12 * 64
    told = " ".join(found["sentences"])
    for said in (
        "train: 49 images of 3 classes, from 16 (across) to 17 (down).",
        "train: 1 file cannot be decoded: across/broken.png",
        "train: 1 group of images is the same picture, 1 more than needed: across/00.png = down/twin.png.",
        "train: 1 group of them is in several classes",
        "1 image of test is the same picture as an image of train: slanting/leak.png and slanting/05.png.",
        "1 image of test is nearly the same as an image of train: down/almost.jpg and down/07.png.",
    ):
        assert said in told, said


def test_a_wrong_label_is_found_by_the_features_of_a_trained_network(tmp_path):
    source = open_source("fashion-mnist", size=32, classes=["Bag", "Trouser", "Ankle boot"])
    for label, name in enumerate(source.class_names):
        for folder in source.class_names:
            (tmp_path / folder).mkdir(exist_ok=True)
        for number, image in enumerate(source.images(label, range(15))):
            place = "Trouser" if (name, number) == ("Bag", 7) else name
            Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(
                tmp_path / place / f"{name}-{number}.png"
            )
    found = look(tmp_path, reference=REFERENCE)
    wrong = found.facts["parts"]["images"]["label_outliers"]
    assert wrong == [{"image": "Trouser/Bag-7.png", "label": "Trouser", "looks_like": "Bag"}]
    assert any("1 image may have a wrong label" in line and "looks like Bag" in line for line in found.sentences)


def test_nothing_is_found_where_nothing_is(clean, capsys):
    before = sorted(path.name for path in clean.rglob("*"))
    assert main(["look", str(clean)]) == 0
    told = capsys.readouterr().out
    assert "train: 45 images of 3 classes, 15 in each." in told and "No image of test is among those of train." in told
    for word in ("same picture", "nearly the same", "decoded", "wrong label"):
        assert word not in told, told
    assert sorted(path.name for path in clean.rglob("*")) == before, "nothing is written"


def test_a_folder_without_splits_and_a_part_of_the_images(clean, tmp_path):
    found = look(clean / "train", most=9)
    assert set(found.facts["parts"]) == {"images"} and found.facts["leaks"] == []
    assert found.facts["parts"]["images"]["looked_at"] == 9
    assert any("9 of these 45 images were looked at; --most looks at more" in line for line in found.sentences)
    assert look(clean / "train", most=9).facts == found.facts, "the draw is fixed"


def test_a_set_is_looked_for_in_its_real_images(clean, tmp_path, capsys):
    out = tmp_path / "set"
    made = [
        "distill",
        "--method",
        "random",
        "--data",
        str(clean),
        "--ipc",
        "2",
        "--size",
        "32",
        "--out",
        str(out),
        "--quiet",
    ]
    assert main(made) == 0
    capsys.readouterr()
    assert main(["look", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "set" and list(found["parts"]) == ["set", "real training images", "real test images"]
    pairs = {(one["of"], one["among"]): one for one in found["leaks"]}
    assert len(pairs["set", "real training images"]["same"]) == 6, "a selection of real images is among them"
    assert pairs["set", "real test images"]["same"] == []
    (out / "images" / "across" / "00000.png").write_bytes(b"no")
    assert any(line.startswith("The set is not whole: ") for line in look(out).sentences)
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    assert any("were not looked at" in line for line in look(out, data=str(tmp_path / "gone")).sentences)


def test_near_copies_are_told_of_the_images_that_are_there(tmp_path):
    """Those of other images are left out, as in a report, and what is not known is not 0."""
    made = make_set(tmp_path / "set", None)
    classes = json.loads((made / "classes.json").read_text())
    (made / "classes.json").write_text(json.dumps({**classes, "ipc": 2}))
    hashes = [json.loads(line)["sha256"] for line in (made / "manifest.jsonl").read_text().splitlines()]
    paths = [json.loads(line)["path"] for line in (made / "manifest.jsonl").read_text().splitlines()]

    def said(copies, judged) -> str:
        images = [{"path": path, "copy": copy} for path, copy in zip(paths, copies, strict=True)]
        rule = {"why": "Too many are there twice."} if None in copies else {}
        (made / "images.json").write_text(json.dumps({"judged": f"{judged}:x", "images": images, "rule": rule}))
        return " ".join(line for line in look(made).sentences if "near-cop" in line)

    now = key_of(hashes)
    assert said([True, False, False, False], now).startswith("1 image of the set is flagged as near-copies")
    stale = said([True] * 4, "0" * 16)
    assert (
        "flagged" not in stale and "left out. The images of the set have changed since then; judge it again." in stale
    )
    unknown = said([None] * 4, now)
    assert "flagged" not in unknown and unknown.endswith(
        "they are near-copies of real images. Too many are there twice."
    )
    some = said([True, None, False, False], now)
    assert some.startswith("1 image of the set is flagged") and "Of 1 image of the set" in some


def test_where_no_image_can_be_decoded_the_broken_ones_are_listed_all_the_same(tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / "real" / name).mkdir(parents=True)
        (tmp_path / "real" / name / "0.png").write_bytes(b"no")
    assert main(["look", str(tmp_path / "real"), "--out", str(tmp_path / "sheet.png")]) == 0
    told = capsys.readouterr().out
    assert "3 files cannot be decoded: across/0.png" in told and "There is no contact sheet" in told
    assert not (tmp_path / "sheet.png").exists()


def test_what_lies_in_no_files_is_looked_at_too():
    found = look("fashion-mnist", classes=["Bag", "Shirt"], most=60)
    assert found.facts["parts"]["train"]["images"] == 12_000 and found.facts["parts"]["train"]["sizes"] == ["28x28"]
    assert found.facts["parts"]["train"]["features"].startswith("ConvNet-3 trained on the real data")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{}/none"], "none"),
        (["{}", "--most", "0"], "at least 1"),
        (["{}", "--out", "{}/x.jpg"], "The contact sheet is a .png file"),
        (["{}", "--out", "/dev/null/x.png"], "The contact sheet cannot be written"),
        (["{}", "--reference", "{}/none"], "There is no reference classifier"),
    ],
)
def test_mistakes_are_a_sentence(clean, capsys, args, says):
    with pytest.raises(SystemExit) if "--most" in args else _nothing():
        assert main(["look", *(arg.format(clean) for arg in args)]) == 1
    assert says in capsys.readouterr().err


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_library_call_takes_at_least_one_image(clean):
    with pytest.raises(DapError, match="At least one image"):
        look(clean, most=0)


# ---- the pieces


def hash_by_loops(picture: np.ndarray) -> np.ndarray:
    """The perceptual hash as its definition says."""
    grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
    low = np.zeros((8, 8))
    for u in range(8):
        for v in range(8):
            for y in range(SIDE):
                for x in range(SIDE):
                    wave = np.cos(np.pi / SIDE * u * (y + 0.5)) * np.cos(np.pi / SIDE * v * (x + 0.5))
                    low[u, v] += grey[y, x] * wave
    flat = low.flatten()
    flat[0] = 0
    return np.where(flat >= np.sort(flat[1:])[31], 1.0, -1.0)


def picture(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((SIDE, SIDE)))).permute(2, 0, 1)


def test_the_hash_is_that_of_its_definition():
    shown = torch.stack([picture(striped(kind, 3)) for kind in range(3)])
    found = perceptual(shown)
    for hashed, one in zip(found, shown.numpy(), strict=True):
        assert np.mean(hashed.numpy() == hash_by_loops(one.astype(float))) > 0.96, "but for values at the median"
    flat = torch.full((1, 3, SIDE, SIDE), 7, dtype=torch.uint8)
    assert perceptual(flat).abs().sum() == 0 and list(near_pairs(flat.expand(2, -1, -1, -1))) == []


def test_pairs_are_those_of_a_loop_over_all_pairs():
    shown = [picture(striped(kind, number)) for kind in range(3) for number in range(4)]
    for one in (0, 5):
        data = io.BytesIO()
        Image.fromarray(shown[one].permute(1, 2, 0).numpy()).save(data, "JPEG", quality=95)
        shown.append(picture(Image.open(data)))
    whole = torch.stack(shown)
    codes = perceptual(whole)
    wanted = {
        (i, j)
        for i in range(len(shown))
        for j in range(i + 1, len(shown))
        if (codes[i] != codes[j]).sum() <= BITS
        and (whole[i].float() - whole[j].float()).square().mean().sqrt() / 255 <= 0.05
    }
    assert set(near_pairs(whole)) == wanted and {(0, 12), (5, 13)} <= wanted
    assert set(near_pairs(whole[:12], whole[12:])) == {(0, 0), (5, 1)}
    assert list(near_pairs(whole[:0], whole)) == []


def test_groups_and_equal_hashes():
    assert groups(6, [(0, 2), (2, 5), (1, 3)]) == [[0, 2, 5], [1, 3]] and groups(3, []) == []
    assert same([b"a", b"b", b"a", b"c", b"b", b"a"]) == [[0, 2, 5], [1, 4]] and same([]) == []


def test_an_outlier_has_no_neighbour_of_its_label():
    generator = torch.Generator().manual_seed(0)
    features = torch.cat([torch.randn(20, 3, generator=generator), 20 + torch.randn(20, 3, generator=generator)])
    labels = torch.tensor([0] * 20 + [1] * 20)
    assert outliers(features, labels) == []
    labels[4] = 1
    assert outliers(features, labels) == [(4, 0)]
    assert outliers(features[:5], labels[:5]) == [], "too few to say"


def test_the_letters_of_a_sheet(tmp_path, capsys):
    """Its font has English letters alone; a name in another script is a number, which a sentence explains."""
    said = {
        "Häuser alt": "Hauser alt",
        "cat": "cat",
        "Straße": "Strasse",
        "ångström": "angstrom",
        "狗": "class 3",
        "кот": "class 3",
    }
    assert {name: drawn(name, 3) for name in said} == said
    for place, name in enumerate(("cat", "Häuser", "狗")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for image in range(2):
            Image.new("RGB", (8, 8), (90 * place, 90 * image, 5)).save(tmp_path / "d" / name / f"{image}.png")
    assert main(["look", str(tmp_path / "d"), "--out", str(tmp_path / "sheet.png")]) == 0
    assert "shows the numbers of these classes: 2 is 狗." in capsys.readouterr().out
