"""Sets of others: what each layout is read as, which labels its images get, and what is refused rather than guessed."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.imagenet import subset


def folders(root: Path, names, files=("0.png", "1.png"), suffix: str = "") -> Path:
    """Class folders; the red of a pixel is the class's place in `names`, the green the file's."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i, file in enumerate(files):
            Image.new("RGB", (4, 4), (place, i, 7)).save(root / name / file.replace("K", name))
    return root


def reds(made: DistilledSet) -> list[int]:
    """The red of the first image of each class."""
    images, labels = made.tensors()
    return [round(float(images[labels == c][0, 0, 0, 0]) * 255) for c in range(len(made.class_names))]


def greens(made: DistilledSet, label: int = 0) -> list[int]:
    images, labels = made.tensors()
    return [round(float(v) * 255) for v in images[labels == label][:, 1, 0, 0]]


def told(made: DistilledSet) -> dict:
    return json.loads((made.path / "import.json").read_text())


def test_a_set_of_ours_comes_out(tmp_path):
    source = folders(tmp_path / "s", ["b", "a"])
    made = import_set(source, tmp_path / "o")
    assert made.class_names == ("a", "b") and made.ipc == 2 and reds(made) == [1, 0]
    assert DistilledSet.open(tmp_path / "o").verify() == [] and made.missing() == [] and made.recipe is None
    assert sorted(p.name for p in made.path.iterdir()) == [
        "README.md", "classes.json", "images", "import.json", "manifest.jsonl",
    ]  # fmt: skip
    first = made.records[0]
    assert (made.path / first["path"]).read_bytes() == (source / first["source"]).read_bytes()
    assert first["source"] == "a/0.png" and first["source_sha256"] == first["sha256"]
    assert told(made)["layout"] == "folders" and "sorted by name" in told(made)["class_order"]
    assert "unknown; ask" in (made.path / "README.md").read_text()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_imagewoof_s_order_is_asked_for_not_guessed(tmp_path):
    field = subset("imagewoof")
    source = folders(tmp_path / "s", field)
    with pytest.raises(
        DapError, match=f"imagewoof, whose label order is {field[0]}.*sorted by name they are n02086240"
    ):
        import_set(source, tmp_path / "o")
    assert not (tmp_path / "o").exists()
    made = import_set(source, tmp_path / "woof", class_names="imagewoof")
    assert made.class_names == field and reds(made) == list(range(10)) and told(made)["layout"] == "minimax"
    plain = import_set(source, tmp_path / "sorted", class_names=["sorted"])
    assert plain.class_names == tuple(sorted(field)) and reds(plain) == [field.index(n) for n in sorted(field)]
    with pytest.raises(DapError, match="imageidc or the first 10 of imagenet100, .* Give --classes imageidc"):
        import_set(folders(tmp_path / "idc", subset("imageidc")), tmp_path / "o")
    with pytest.raises(DapError, match=f"the first 3 of imagewoof, .* Give --classes {' '.join(field[:3])} for"):
        import_set(folders(tmp_path / "three", field[:3]), tmp_path / "o")


def test_imagenette_s_order_is_the_sorted_one(tmp_path):
    made = import_set(folders(tmp_path / "s", subset("imagenette")), tmp_path / "o")
    assert made.class_names == subset("imagenette") and "order of imagenette" in told(made)["class_order"]


def test_wnid_folders_by_names_asked_for_and_a_part_of_them(tmp_path):
    source = folders(tmp_path / "s", subset("imagewoof"))
    made = import_set(source, tmp_path / "o", class_names=[subset("imagewoof")[3], subset("imagewoof")[1]])
    assert reds(made) == [3, 1] and len(told(made)["facts"]["left_out"]) == 8
    with pytest.raises(DapError, match="unknown class 'n01440764'"):
        import_set(source, tmp_path / "p", class_names=["n01440764"])


@pytest.mark.parametrize(
    ("layout", "pick", "taken"),
    [
        ("auto", None, [0, 1, 10, 11]),
        ("mgd3", "natural", [0, 1, 2, 3]),
        ("auto", "string", [0, 1, 10, 11]),
        ("folders", None, [0, 1, 2, 3]),
    ],
)
def test_which_images_are_taken(tmp_path, layout, pick, taken):
    """The minimax layout's default is what MinimaxDiffusion's evaluation takes: the first file names as strings."""
    source = folders(tmp_path / "s", ["n01440764", "n02102040"], [f"{i}.png" for i in range(12)])
    made = import_set(source, tmp_path / "o", layout, ipc=4, pick=pick)
    assert greens(made) == greens(made, 1) == taken
    assert "4 of 12 images a class" in " ".join(told(made)["notes"])


def test_a_random_pick_depends_on_its_seed_and_the_class_alone(tmp_path):
    source = folders(tmp_path / "s", ["a", "b"], [f"{i}.png" for i in range(12)])

    def drawn(out: str, seed: int, names=None):
        made = import_set(source, tmp_path / out, ipc=4, pick="random", seed=seed, class_names=names)
        return dict(zip(made.class_names, (greens(made, c) for c in range(len(made.class_names))), strict=True))

    first = drawn("1", 0)
    assert drawn("2", 0) == first != drawn("3", 1) and drawn("4", 0, ["b"])["b"] == first["b"] != first["a"]
    assert first["a"] == sorted(set(first["a"]))


def test_positions_are_labels_in_rded_s_and_d4m_s_layouts(tmp_path):
    names = [f"c{i}" for i in range(11)]
    rded = folders(tmp_path / "rded", [f"{k:05d}" for k in range(11)])
    made = import_set(rded, tmp_path / "o", class_names=names)
    assert made.class_names == tuple(names) and reds(made) == list(range(11)) and told(made)["layout"] == "rded"
    d4m = folders(tmp_path / "d4m", [str(k) for k in range(11)], ["K-image00.png", "K-image10.png", "K-image02.png"])
    made = import_set(d4m, tmp_path / "p", class_names=names)
    assert reds(made) == list(range(11)) and told(made)["layout"] == "d4m" and greens(made, 10) == [0, 2, 1]
    assert import_set(rded, tmp_path / "q", class_names=["11"]).class_names[10] == "10"
    with pytest.raises(DapError, match="give --classes with 11 names"):
        import_set(rded, tmp_path / "r")
    with pytest.raises(DapError, match="but 10 classes are named"):
        import_set(rded, tmp_path / "r", class_names="imagenette")
    # and without a copy
    assert DistilledSet.from_folder(rded, names).class_names == tuple(names)
    assert reds(DistilledSet.from_folder(d4m, names)) == list(range(11))


def test_numbers_with_gaps_are_not_taken_for_positions(tmp_path):
    source = folders(tmp_path / "s", ["00000", "00217", "00482"])
    with pytest.raises(DapError, match="not 0 to 2.*positions in a longer list, or names"):
        import_set(source, tmp_path / "o", class_names=["a", "b", "c"])
    assert import_set(source, tmp_path / "o", "folders").class_names == ("00000", "00217", "00482")


def test_names_from_a_file(tmp_path):
    source = folders(tmp_path / "s", ["00000", "00001"])
    (tmp_path / "n.txt").write_text("cat\ndog\n")
    (tmp_path / "n.json").write_text('["cat", "dog"]')
    for i, file in enumerate(("n.txt", "n.json")):
        assert import_set(source, tmp_path / f"o{i}", class_names=[str(tmp_path / file)]).class_names == ("cat", "dog")
    (tmp_path / "n.json").write_text("{}")
    with pytest.raises(DapError, match="must hold a list of class names"):
        import_set(source, tmp_path / "p", class_names=[str(tmp_path / "n.json")])


def test_other_formats_become_png_without_loss(tmp_path):
    (tmp_path / "s" / "a").mkdir(parents=True)
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    grey.save(tmp_path / "s" / "a" / "0.bmp")
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "s" / "a" / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6), (9, 8, 7)).save(tmp_path / "s" / "a" / "2.png", exif=exif)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "s" / "a" / "3.png")
    made = import_set(tmp_path / "s", tmp_path / "o")
    pixels = []
    for record in made.records:
        with Image.open(made.path / record["path"]) as image:
            assert image.format == "PNG" and image.mode == "RGB"
            pixels.append(np.asarray(image))
    assert (pixels[0][..., 1] == np.asarray(grey)).all() and (pixels[1] == 255).all()
    assert pixels[2].shape == (4, 6, 3) and (pixels[3] == 255).all(), "turned upright, and clear is white"
    assert told(made)["images"] == {"kept_to_the_byte": 0, "stored_anew": 4, "sizes": {"4x4": 3, "6x4": 1}}
    assert "differ in size" in " ".join(told(made)["notes"])
    assert made.tensors(4)[0].shape == (4, 3, 4, 4)


def test_broken_images_and_uneven_classes_leave_nothing_behind(tmp_path):
    source = folders(tmp_path / "s", ["a", "b"])
    (source / "a" / "2.png").write_bytes((source / "a" / "0.png").read_bytes()[:50])
    with pytest.raises(DapError, match="'b' has 2 images, 'a' 3.*--ipc 2"):
        import_set(source, tmp_path / "o")
    with pytest.raises(DapError, match="Class 'b' .* has 2 images, not the 3"):
        import_set(source, tmp_path / "o", ipc=3)
    (source / "b" / "2.png").write_bytes((source / "b" / "0.png").read_bytes())
    with pytest.raises(DapError, match="a/2.png cannot be decoded"):
        import_set(source, tmp_path / "o")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


# ---- tensors


def tensors(n: int = 6, c: int = 3):
    return torch.rand(n, c, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 1, 0, 2])[:n]


@pytest.mark.parametrize("form", ["dict", "pair", "two files", "a folder", "safetensors", "DC's results"])
def test_tensors_in_every_form(tmp_path, form):
    from safetensors.torch import save_file

    images, labels = tensors()
    source, more = tmp_path / "x.pt", {}
    if form == "dict":
        torch.save({"images": images, "labels": labels, "accuracy": 0.5}, source)
    elif form == "pair":
        torch.save((images, labels), source)
    elif form == "DC's results":
        torch.save({"data": [[images, labels]], "accs_all_exps": {"ConvNet": []}}, source)
    elif form == "safetensors":
        source = tmp_path / "x.safetensors"
        save_file({"images": images, "labels": labels}, source)
    else:
        (tmp_path / "f").mkdir()
        source = tmp_path / "f" / "images_best.pt"
        torch.save(images, source)
        torch.save(labels.float(), tmp_path / "f" / "labels_best.pt")
        more = {"labels": tmp_path / "f" / "labels_best.pt"} if form == "two files" else {}
        source = source if form == "two files" else tmp_path / "f"
    made = import_set(source, tmp_path / "o", class_names=["a", "b", "c"], **more)
    got, mine = made.tensors()
    order = torch.tensor([1, 4, 2, 3, 0, 5])
    assert mine.tolist() == labels[order].tolist() and (got - images[order]).abs().max() <= 0.5 / 255 + 1e-6
    facts = told(made)["facts"]
    assert facts["clipped_values"] == 0 and 0 < facts["largest_rounding_error"] <= 0.5 / 255


def test_bytes_and_grey_are_exact(tmp_path):
    images = torch.arange(2 * 16, dtype=torch.uint8).reshape(2, 1, 4, 4)
    torch.save({"images": images, "labels": torch.tensor([0, 1]), "class_names": ["a", "b"]}, tmp_path / "x.pt")
    made = import_set(tmp_path / "x.pt", tmp_path / "o")
    assert (made.tensors()[0] * 255).round().byte().equal(images.expand(-1, 3, -1, -1))
    assert made.class_names == ("a", "b") and told(made)["facts"]["values"] == "bytes, as they are"
    swapped = import_set(tmp_path / "x.pt", tmp_path / "p", class_names=["b", "a"])
    assert (swapped.tensors()[0][1] * 255).round().byte().equal(images[0].expand(3, -1, -1))
    torch.save((images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3), torch.tensor([0, 1])), tmp_path / "y.pt")
    last = import_set(tmp_path / "y.pt", tmp_path / "q", class_names=["2"])
    assert (last.tensors()[0] * 255).round().byte().equal(images.expand(-1, 3, -1, -1)) and "axes" in told(last)[
        "facts"
    ]


def test_normalised_tensors_come_back_and_what_is_clipped_is_counted(tmp_path):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    levels = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    normal = (levels / 255 - mean[:, None, None]) / std[:, None, None]
    labels = torch.arange(6) // 2
    torch.save({"images": normal, "labels": labels}, tmp_path / "x.pt")
    with pytest.raises(DapError, match="give --mean and --std"):
        import_set(tmp_path / "x.pt", tmp_path / "o", class_names=["3"])
    made = import_set(tmp_path / "x.pt", tmp_path / "o", class_names=["3"], mean=mean.tolist(), std=std.tolist())
    assert (made.tensors()[0] * 255).round().long().equal(levels) and told(made)["facts"]["clipped_values"] == 0
    normal[0, 0, 0, :2] = (1.25 - mean[0]) / std[0]
    torch.save({"images": normal, "labels": labels}, tmp_path / "x.pt")
    clipped = import_set(tmp_path / "x.pt", tmp_path / "p", class_names=["3"], mean=mean.tolist(), std=std.tolist())
    facts = told(clipped)["facts"]
    assert facts["clipped_values"] == 2 and facts["furthest_outside"] == pytest.approx(0.25, abs=1e-6)
    assert facts["of_values"] == 6 * 48 and "Clipped to [0, 1]: 2 of 288" in " ".join(told(clipped)["notes"])


def test_tensors_without_labels_lie_class_by_class(tmp_path):
    images, _ = tensors()
    torch.save(images, tmp_path / "x.pt")
    with pytest.raises(DapError, match="no labels; give --labels FILE, or --ipc"):
        import_set(tmp_path / "x.pt", tmp_path / "o", class_names=["3"])
    made = import_set(tmp_path / "x.pt", tmp_path / "o", class_names=["3"], ipc=2)
    assert made.tensors()[1].tolist() == [0, 0, 1, 1, 2, 2] and "class by class" in told(made)["facts"]["labels"]


def test_soft_labels_are_said_to_be_hardened(tmp_path):
    images, labels = tensors()
    soft = torch.nn.functional.one_hot(labels, 3).float() * 4 + 0.1
    torch.save({"images": images, "labels": soft}, tmp_path / "x.pt")
    made = import_set(tmp_path / "x.pt", tmp_path / "o", class_names=["3"])
    assert made.ipc == 2 and "soft" in told(made)["facts"]["labels"]
    assert (made.tensors()[0][0] - images[1]).abs().max() < 0.01


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/dap-evil", "w"))


@pytest.mark.parametrize(
    ("held", "more", "says"),
    [
        ({"images": Evil()}, {}, "could run any code, so it is not opened"),
        ({"labels": torch.arange(3)}, {}, "no images; call the right one 'images'"),
        ({"a": torch.rand(2, 3, 4, 4), "b": torch.rand(2, 3, 4, 4)}, {}, "several tensors that could be the images: a, b"),
        ((torch.rand(2, 3, 4, 4), torch.arange(3)), {}, "2 images but 3 labels"),
        ({"images": torch.rand(2, 5, 4, 4), "labels": torch.arange(2)}, {}, "c 1 or 3"),
        ({"images": torch.full((2, 3, 4, 4), torch.nan), "labels": torch.arange(2)}, {}, "non-finite"),
        ({"images": torch.rand(2, 3, 4, 4), "labels": torch.tensor([0.5, 1])}, {}, "not whole numbers"),
        ({"images": torch.rand(2, 3, 4, 4), "labels": torch.tensor([-1, 1])}, {}, "labels from -1"),
        ({"images": torch.rand(2, 3, 4, 4), "labels": torch.arange(2)}, {"mean": [0.5]}, "go together"),
        ({"images": torch.rand(2, 3, 4, 4), "labels": torch.arange(2)}, {"mean": [0, 0], "std": [1, 1]}, "1 or 3 numbers"),
        ({"images": torch.rand(2, 3, 4, 4), "labels": torch.arange(2)}, {"mean": [0], "std": [0]}, "positive"),
        ({"images": torch.rand(2, 3, 4, 4), "labels": torch.arange(2)}, {"labels": "l.pt"}, "no file of labels"),
        ({"images": torch.rand(2, 3, 4, 4).byte(), "labels": torch.arange(2)}, {"mean": [0], "std": [1]}, "holds bytes"),
        ({"data": [[torch.rand(2, 3, 4, 4), torch.arange(2)]] * 5}, {}, "holds 5 sets"),
        ([1, 2], {}, "a list of a int, a int"),
    ],
)  # fmt: skip
def test_what_tensors_do_not_say_is_not_guessed(tmp_path, held, more, says):
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(DapError, match=says):
        import_set(tmp_path / "x.pt", tmp_path / "o", class_names=["2"], **more)
    assert not (tmp_path / "o").exists() and not Path("/tmp/dap-evil").exists()


def test_a_damaged_file_of_tensors(tmp_path):
    for name in ("x.pt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"not at all")
        with pytest.raises(DapError, match=f"{name} "):
            import_set(tmp_path / name, tmp_path / "o")


# ---- parquet and shards


def parquet(file: Path, names: list[str] | None) -> Path:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    features = Features({"image": Picture(), "label": ClassLabel(names=names) if names else Value("int64")})
    rows = {"image": [Image.new("RGB", (4, 4), (i % 2, i, 0)) for i in range(4)], "label": [0, 1, 0, 1]}
    Dataset.from_dict(rows, features=features).to_parquet(file)
    return file


def test_parquet_of_the_hub(tmp_path):
    file = parquet(tmp_path / "train-00000-of-00001.parquet", ["zebra", "ape"])
    made = import_set(file, tmp_path / "o")
    assert made.class_names == ("zebra", "ape") and reds(made) == [0, 1] and greens(made) == [0, 2]
    assert reds(import_set(tmp_path / "o", tmp_path / "p", class_names=["ape", "zebra"])) == [1, 0]
    assert reds(import_set(file, tmp_path / "q", class_names=["ape", "zebra"])) == [1, 0]
    unnamed = parquet(tmp_path / "d" / "data.parquet", None)
    assert import_set(unnamed.parent, tmp_path / "r").class_names == ("0", "1")
    assert import_set(unnamed, tmp_path / "t", class_names=["x", "y"]).class_names == ("x", "y")
    with pytest.raises(DapError, match="no file names to sort as text"):
        import_set(file, tmp_path / "u", pick="string")


def test_shards_of_others(tmp_path):
    """Webdataset's own writer, folders in the names, labels without names."""
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "x.tar")) as shard:
        for i in range(4):
            shard.write({"__key__": f"train/s{i}", "png": Image.new("RGB", (4, 4), (i % 2, i, 0)), "cls": i % 2})
    made = import_set(tmp_path / "x.tar", tmp_path / "o", class_names=["a", "b"])
    assert reds(made) == [0, 1] and greens(made, 1) == [1, 3]
    with pytest.raises(DapError, match="give --classes with 2 names"):
        import_set(tmp_path / "x.tar", tmp_path / "p")
    with tarfile.open(tmp_path / "y.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(DapError, match="no image among the files of sample 'a'"):
        import_set(tmp_path / "y.tar", tmp_path / "p")
    (tmp_path / "z.tar").write_bytes(b"torn" * 300)
    with pytest.raises(DapError, match="not a whole, uncompressed tar"):
        import_set(tmp_path / "z.tar", tmp_path / "p")


def test_two_readings_of_a_folder_are_named(tmp_path):
    source = folders(tmp_path / "s", ["a", "b"])
    torch.save((torch.rand(2, 3, 4, 4), torch.arange(2)), source / "x.pt")
    with pytest.raises(DapError, match="as tensors or as folders; say which with --layout"):
        import_set(source, tmp_path / "o")
    assert import_set(source, tmp_path / "o", "folders").class_names == ("a", "b")


# ---- the verb


def call(capsys, *args: object) -> tuple[int, str, str]:
    status = main([str(a) for a in args])
    printed = capsys.readouterr()
    return status, printed.out, printed.err.rpartition("\r")[2]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{}/none"], "There is no file or folder"),
        (["{}/s", "--layout", "minmax"], "Did you mean 'minimax'"),
        (["{}/s", "--layout", "minimax"], "has WordNet ids for folders; it has a, b"),
        (["{}/s", "--layout", "rded"], "Give --layout folders to take these as names"),
        (["{}/s", "--pick", "first"], "Unknown pick 'first'"),
        (["{}/s", "--mean", "0.5"], "--mean is for tensors"),
        (["{}/s", "--classes", "a", "c"], "unknown class 'c'"),
        (["{}/s", "--ipc", "9"], "has 2 images, not the 9"),
        (["{}", "--out", "{}-o"], "holds s, and s holds the folders a, b. If these are the classes, give"),
        (["{}/note.md"], "is a file, not a folder of class folders"),
        (["{}/s", "--out", "{}/used"], "is not empty"),
        (["{}/s", "--out", "{}/note.md"], "is a file"),
    ],
)
def test_each_wrong_turn_is_one_sentence(tmp_path, capsys, args, says):
    folders(tmp_path / "s", ["a", "b"])
    (tmp_path / "note.md").write_text("x")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("precious")
    given = [a.format(tmp_path) for a in args]
    out = [] if "--out" in given else ["--out", tmp_path / "o"]
    status, _, err = call(capsys, "import", *given, *out)
    assert status == 1 and says in err and err.startswith("dap: error: ") and err.count("\n") == 1
    assert not (tmp_path / "o").exists() and (tmp_path / "used" / "thesis.txt").exists()


def test_the_verb_says_what_it_found_and_its_set_is_judged(colours, tmp_path, capsys):
    out = tmp_path / "o"
    command = ["import", colours / "train", "--ipc", 4, "--out", out, "--licence", "CC0-1.0"]
    done = subprocess.run(
        [sys.executable, "-m", "dap", *map(str, command)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (
        "Layout: folders (found: class folders blue, green, red)" in done.stdout and "Next: dap evaluate" in done.stdout
    )
    assert "CC0-1.0" in (out / "README.md").read_text()
    status, _, err = call(capsys, "evaluate", out, "--data", colours, "--epochs", 1, "--protocol", "quick-hard")
    assert status == 0, err
    assert (out / "trials.jsonl").exists()


def test_evaluate_points_to_import(tmp_path, capsys, colours):
    torch.save((torch.rand(2, 3, 4, 4), torch.arange(2)), tmp_path / "x.pt")
    parquet(tmp_path / "p" / "train.parquet", ["a", "b"])
    for path in (tmp_path / "x.pt", tmp_path / "p"):
        status, _, err = call(capsys, "evaluate", path, "--data", colours)
        assert status == 1 and f"make a set of it with dap import {path}" in err


def test_an_import_that_is_complete_says_so_and_writes_nothing(tmp_path, colours, capsys):
    source, out = tmp_path / "theirs", tmp_path / "set"
    shutil.copytree(colours / "train", source)
    words = ["import", str(source), "--ipc", "2", "--out", str(out)]
    assert main(words) == 0
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(words) == 0
    assert f"{out} is this import already, and it is whole: nothing was written." in capsys.readouterr().out
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    for more, says in ((["--ipc", "3"], "ipc: 2 -> 3"), (["--licence", "mine"], "the licence on its card")):
        assert main([*words, *more]) == 1
        assert f"holds another import. What changed: {says}" in capsys.readouterr().err
    Image.new("RGB", (8, 8), "white").save(source / "red" / "0.png")
    assert main(words) == 1 and "1 of 6 images of the source" in capsys.readouterr().err
    shutil.copy(colours / "train" / "red" / "0.png", source / "red" / "0.png")
    next((out / "images").rglob("*.png")).unlink()
    assert main(words) == 1 and "is not whole" in capsys.readouterr().err
