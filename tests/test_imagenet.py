"""ImageNet's label spaces: ids, indices and names; the subsets; and where data, set and backbone meet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from conftest import tiny_transformer, tiny_vae
from dap import imagenet as ids
from dap.backbones import Card
from dap.backbones.kinds.dit import DiT
from dap.base.errors import DapError
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.recipe import Recipe

FULL = list(ids.names().values())

# MinimaxDiffusion's files with the sorted index of each id, as a second record beside the package's own lists.
PAIRS = {
    "imagenette": "n01440764:0 n02102040:217 n02979186:482 n03000684:491 n03028079:497 n03394916:566 n03417042:569 "
    "n03425413:571 n03445777:574 n03888257:701",
    "imagewoof": "n02096294:193 n02093754:182 n02111889:258 n02088364:162 n02086240:155 n02089973:167 n02087394:159 "
    "n02115641:273 n02099601:207 n02105641:229",
    "imageidc": "n02869837:452 n01749939:64 n02488291:374 n02107142:236 n13037406:993 n02091831:176 n04517823:882 "
    "n04589890:904 n03062245:503 n01773797:74",
}
IMAGENET_100 = (
    "452 64 374 236 993 176 882 904 503 74 57 959 953 508 872 228 122 421 599 858 157 449 994 608 151 209 15 876 246 "
    "766 455 857 131 119 234 90 45 936 479 272 665 653 659 158 960 765 908 703 407 560 317 938 724 748 331 619 120 "
    "267 155 708 368 772 167 494 180 431 342 854 305 54 268 667 166 277 662 798 313 498 299 222 682 593 775 674 592 "
    "137 758 717 606 281 796 211 620 830 544 275 242 570 99 169"
)


def dit(class_names) -> DiT:
    card = Card("ours", "CC0-1.0", 8, 1.0, "all", "1", 0.1, "step")
    return DiT(tiny_transformer(classes=len(class_names)), tiny_vae(), class_names=class_names, card=card)


@pytest.fixture(scope="module")
def thousand() -> DiT:
    return dit(FULL)


def folders(root: Path, names, split: str = "train", suffix: str = "JPEG") -> Path:
    """Class folders of one grey image each, whose level is the class's place."""
    for place, name in enumerate(names):
        (root / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (20 * place,) * 3).save(root / split / name / f"0.{suffix}")
    return root


def test_all_thousand_round_trip():
    assert len(ids.names()) == 1000 == len(ids.indices())
    assert list(ids.names()) == sorted(ids.names()) == list(ids.subset("imagenet1k"))
    for label, wnid in enumerate(ids.names()):
        assert ids.is_wnid(wnid) and ids.indices()[wnid] == label and ids.name_of(wnid) == FULL[label]
    spots = {0: "tench", 217: "English springer", 340: "zebra", 701: "parachute", 999: "toilet tissue"}
    assert {label: FULL[label].split(",")[0] for label in spots} == spots
    assert not ids.is_wnid("tench") and not ids.is_wnid("n0144076") and ids.name_of("my class") == "my class"


@pytest.mark.parametrize("name", PAIRS)
def test_subsets_are_in_the_protocol_s_order(name):
    assert [f"{wnid}:{ids.indices()[wnid]}" for wnid in ids.subset(name)] == PAIRS[name].split()


def test_imagenet_100():
    assert [ids.indices()[wnid] for wnid in ids.subset("imagenet100")] == [int(i) for i in IMAGENET_100.split()]
    assert ids.subset("imagenet100")[:10] == ids.subset("imageidc")


def test_the_name_of_a_subset_stands_for_its_ids():
    assert ids.expand("imagenette") == ids.expand(["imagenette"]) == ids.subset("imagenette")
    assert ids.expand(None) is None and ids.expand(["tench"]) == ["tench"]
    assert ids.expand(["imagenette", "tench"]) == ["imagenette", "tench"]  # a class of that name among others
    with pytest.raises(DapError, match=r"a subset \(imagenette, imagewoof, .*imagenet1k\), not 'imagenetwoof'"):
        ids.expand("imagenetwoof")


def test_a_recipe_holds_the_ids():
    for given in ("imagewoof", ["imagewoof"]):
        recipe = Recipe.parse({"method": "random", "data": {"path": "x", "classes": given}})
        assert recipe.data.classes == ids.subset("imagewoof")
        assert json.loads(recipe.model_dump_json())["data"]["classes"] == list(ids.subset("imagewoof"))
    assert Recipe.parse({"data": {"classes": [0, "b"]}}).data.classes == ("0", "b")
    with pytest.raises(DapError, match=r"data.classes: `classes` must be a list .*, not 'imagewof' \(given"):
        Recipe.parse({"data": {"classes": "imagewof"}})


def test_every_spelling_crosses_to_the_right_label(thousand):
    def cross(*names: str) -> list[int]:
        return thousand.condition(names).tolist()

    assert cross(*ids.names()) == list(range(1000))
    alone = [name for name in FULL if name != "crane"]
    assert cross(*alone) == [label for label, name in enumerate(FULL) if name != "crane"]
    for name, label in {"tench": 0, "TENCH": 0, "Tinca tinca": 0, "tench, Tinca tinca": 0}.items():
        assert cross(name, "English springer") == cross(name, "English_springer") == [label, 217]
    with pytest.raises(DapError, match="'tench' and 'TENCH' are the same label 0"):
        cross("tench", "TENCH")
    assert cross("n02012849", "n03126707") == [134, 517]
    # Names that differ in a capital letter alone: the garment, and the dog.
    assert cross("cardigan", "Cardigan") == [474, 264]
    assert cross("maillot", "maillot, tank suit") == [638, 639]
    with pytest.raises(DapError, match=r"'crane' is the name of several labels of ours: \[134, 517\].* WordNet id"):
        cross("tench", "crane")


def test_a_backbone_in_other_words_knows_ids_and_these_names():
    """A list with ids, or with a few names worded otherwise, in the same order."""
    other = [name.split(",")[0] for name in FULL]
    other[134], other[517] = "crane bird", "construction crane"
    model = dit(other)
    for crane in ("construction crane", "n03126707"):
        assert model.condition([crane, "n02012849", FULL[0]]).tolist() == [517, 134, 0]
    with pytest.raises(DapError, match="several labels"):
        model.condition(["crane"])
    assert dit(list(ids.names())).condition(["tench", "n02102040"]).tolist() == [0, 217]


def test_a_thousand_other_classes_are_no_imagenet():
    shuffled = [*FULL[1:], FULL[0]]
    assert ids.is_imagenet(FULL) and not ids.is_imagenet(shuffled) and not ids.is_imagenet(FULL[:999])
    model = dit(shuffled)
    assert model.condition(["tench"]).tolist() == [999]
    with pytest.raises(DapError, match="was not trained on 'n01440764'"):
        model.condition(["n01440764"])


def test_a_mismatch_lists_both_sides(thousand, backbone):
    with pytest.raises(DapError) as error:
        thousand.condition(["tench", "widget", "n99999999"])
    said = str(error.value)
    assert "not trained on 'widget', 'n99999999'" in said
    assert "The data's classes: tench, widget, n99999999" in said and "The backbone's 1000: tench, Tinca tinca" in said
    with pytest.raises(DapError, match="data's classes: n01440764.* backbone's 3: red, green, blue"):
        backbone.condition(["n01440764"])
    with pytest.raises(DapError, match=r"data's classes: cat, dog\. The"):  # each once, and all of them
        backbone.condition(["cat"] * 12 + ["dog"])
    many = [f"c{i}" for i in range(12)]
    with pytest.raises(DapError, match=r"data's classes: c0, .*, c9, …\. The"):
        backbone.condition(many)


@pytest.mark.parametrize("other", ["val", "validation"])
def test_ilsvrc_s_layout(tmp_path, other):
    """train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, beside a test/ of loose images without labels; label order is the subset's."""
    wnids = sorted(ids.subset("imagewoof"))
    folders(folders(tmp_path, wnids), wnids, other)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    for split, where in (("train", "train"), ("test", other)):
        source = open_source(tmp_path, split, size=4, classes="imagewoof")
        assert source.class_names == ids.subset("imagewoof")
        assert source.keys(0, [0]) == ["n02096294/0.JPEG"] and source.count(9) == 1
        level = 20 * wnids.index("n02096294") / 255
        assert source.images(0, [0]).mean().item() == pytest.approx(level, abs=0.02), where
    assert open_source(tmp_path, size=4).class_names == tuple(wnids)


def test_a_class_that_is_missing_is_named_with_its_name(tmp_path):
    folders(tmp_path, ids.subset("imagenette")[:-2])
    with pytest.raises(
        DapError, match=r"unknown classes 'n03445777' \(golf ball\), 'n03888257' \(parachute\) in .*train; "
    ):
        open_source(tmp_path, size=4, classes=["imagenette"])


@pytest.mark.parametrize("spelling", ["first", "full", "underscores"])
def test_folders_with_names_are_found_by_id(tmp_path, spelling):
    """The classes are then called by id, so that the set, its seeds and its labels are those of a folder of ids."""
    spell = {
        "first": lambda name: name.split(",")[0],
        "full": lambda name: name,
        "underscores": lambda name: name.split(",")[0].replace(" ", "_"),
    }[spelling]
    wnids = ids.subset("imagenette")
    folders(tmp_path, [spell(ids.name_of(wnid)) for wnid in wnids])
    source = open_source(tmp_path, size=4, classes="imagenette")
    assert source.class_names == wnids
    assert source.keys(1, [0]) == [f"{spell('English springer, English springer spaniel')}/0.JPEG"]
    for label in range(10):
        assert source.images(label, [0]).mean().item() == pytest.approx(20 * label / 255, abs=0.02)


def test_names_that_do_not_decide_are_refused(tmp_path):
    folders(tmp_path / "a", ["crane", "tench"])
    with pytest.raises(DapError, match=r"no one class for 'n02012849' \(crane\); name its classes by WordNet id"):
        open_source(tmp_path / "a", size=4, classes=["n01440764", "n02012849"])
    folders(tmp_path / "b", ["Tinca tinca", "tench"])
    with pytest.raises(DapError, match=r"no one class for 'n01440764' \(tench\)"):
        open_source(tmp_path / "b", size=4, classes=["n01440764"])
    # A folder of the id itself always decides.
    folders(tmp_path / "c", ["crane", "n02012849"])
    assert open_source(tmp_path / "c", size=4, classes=["n02012849"]).keys(0, [0]) == ["n02012849/0.JPEG"]
    with pytest.raises(DapError, match="no one class for 'n03126707'"):
        open_source(tmp_path / "c", size=4, classes=["n03126707"])


def test_folders_of_ids_are_found_by_name(tmp_path):
    """docs/commands.md promised names for a folder of WordNet ids, and only ids were found."""
    wnids = ids.subset("imagenette")
    folders(tmp_path, [*wnids, "n02012849"])
    wanted = ["tench", "English_springer", "GOLF BALL", "n03888257", "Tinca tinca"]
    source = open_source(tmp_path, size=4, classes=wanted[:4])
    assert source.class_names == tuple(wanted[:4])
    found = [source.keys(label, [0])[0].partition("/")[0] for label in range(4)]
    assert found == ["n01440764", "n02102040", "n03445777", "n03888257"]
    with pytest.raises(DapError, match="'tench', 'Tinca tinca' are names of one class; name each class once"):
        open_source(tmp_path, size=4, classes=wanted)
    with pytest.raises(DapError, match="no one class for 'crane'; name its classes by WordNet id"):
        open_source(tmp_path, size=4, classes=["crane"])
    for wrong, says in {
        "beagle": r"unknown class 'beagle' in .*known classes: .*n01440764 \(tench\)",
        "imagenet-a": "Lists of classes with a name are imagenette, imagewoof",
        "own.txt": "A list of classes is given as its names, or in a recipe file as data: {classes:",
    }.items():
        with pytest.raises(DapError, match=says):
            open_source(tmp_path, size=4, classes=[wrong])
    with pytest.raises(DapError, match="imagenette is a list of classes and stands alone, as in --classes imagenette"):
        open_source(tmp_path, size=4, classes=["imagenette", "n02012849"])


def test_parquet_with_imagenet_s_names(tmp_path):
    """As the hub's ImageNet is: numbers, named in the schema, all thousand and two of them renamed to be unique."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(FULL)
    names[134], names[517] = "crane bird", "crane2"
    bytes_ = io.BytesIO()
    Image.new("RGB", (8, 8)).save(bytes_, "png")
    labels = [517, 217, 134, 0]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"image": [{"bytes": bytes_.getvalue()}] * 4, "label": labels})
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(note), tmp_path / "train-0.parquet")
    wnids = ["n03126707", "n02102040", "n01440764"]
    source = open_source(tmp_path, size=4, classes=wnids)
    assert source.class_names == tuple(wnids)
    assert [source.keys(label, [0]) for label in range(3)] == [[f"train-0.parquet#{row}"] for row in (0, 1, 3)]


def test_a_set_made_by_others_is_opened_by_subset(tmp_path):
    folders(tmp_path, ids.subset("imagewoof"), split="made", suffix="png")
    assert DistilledSet.from_folder(tmp_path / "made", ["imagewoof"]).class_names == ids.subset("imagewoof")
