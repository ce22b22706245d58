"""Every verb that writes, on a disk that takes no more: one sentence that names a path, nothing lost, and the command goes on.

The limit is the system's own limit of the size of a file (`ulimit -f`), so the writers of Python, torch, safetensors and pyarrow
all meet it as they meet a full disk, and it needs no root. One more test has a small disk in memory, where the system lets it.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from dap.base.disk import REFUSED, refusal, told, writing
from dap.base.errors import DapError
from dap.base.files import append, replacing
from dap.cli.main import main
from dap.cli.verbs import VERBS
from dap.data.sets.distilled import DistilledSet

SMALL = ["--set", "size=16", "--set", "width=4", "--epochs", "2"]
LIMITS = (0, 300, 1000, 3000, 10_000, 30_000)
"""Bytes that a file may have. Each limit stops a verb at another file."""

QUIET = ["methods", "verify", "check", "status"]
"""Verbs that write no file."""

AS_OTHERS = ["demo", "sweep", "worker", "push"]
"""Verbs that are `dap compare` with other flags, or a process of it; push is `dap export` into a folder for a while."""


@contextmanager
def limited(size: int):
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python 3.11 keeps bytecode that was cut off
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = bytecode


@pytest.fixture(scope="module")
def places(colours, pipeline_folder, tmp_path_factory) -> dict[str, Path]:
    """What the verbs read: data, weights, a set with trials, a set of random images beside it, and a teacher."""
    room = tmp_path_factory.mktemp("room")
    random, other = room / "sets" / "random", room / "sets" / "other"
    run("distill", "--method", "random", "--data", colours, "--ipc", 3, "--out", random)
    shutil.copytree(random, other)
    recipe = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps({**recipe, "method": "mine"}))
    run("evaluate", random, other, "--networks", "convnet2", *SMALL)
    teacher = room / "teacher.safetensors"
    run("train-teacher", "--data", colours, "--network", "convnet2", "--set", "size=8", *SMALL[2:], "--out", teacher)
    return {
        "pictures": enlarged(colours, room / "pictures"),
        "data": colours,
        "weights": pipeline_folder,
        "sets": room / "sets",
        "teacher": teacher,
        "set": random,
    }


def enlarged(colours: Path, folder: Path) -> Path:
    """The training images at 16 px, from which on a backbone is trained."""
    for file in (colours / "train").glob("*/*.png"):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.resize((16, 16)).save(folder / file.parent.name / file.name)
    return folder


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


LAYOUTS = ["imagefolder", "parquet", "webdataset", "ddranking", "pt", "fkd", "labels"]
DAP = "--method dap --reals 4 --steps 2 --ipc 2 --block 1 --data {data} --backbone {weights}"
CASES = {
    "distill": f"distill {DAP} --out {{out}}",
    "distill, cache": f"distill {DAP} --out {{out}} --cache {{out}}-cache",
    "distill, checkpoints": "distill --method dm --option iterations=3 --option network=convnet1 --option width=32 --ipc 1 "
    "--data {data} --size 8 --out {out}",
    "compare": "compare --methods random,vanilla --ipc 1 --steps 2 --sets 1 --data {data} --backbone {weights} "
    "--networks convnet1 --set size=16 --set width=4 --epochs 2 --out {out}",
    "evaluate": "evaluate {set} --networks convnet2 --set size=16 --set width=8 --epochs 3 --out {out}",
    "train-teacher": "train-teacher --data {data} --network convnet2 --set size=8 --set width=8 --epochs 3 --out {out}",
    "train-backbone": "train-backbone --data {pictures} --minutes 0.01 --steps 1 --autoencoder-steps 1 --size 16 --out {out}",
    "tune-backbone": "tune-backbone {weights} --data {pictures} --steps 1 --out {out}",
    "caption": "caption --data {data} --model stand-in --out {out}",
    "classify": "classify {set} --backbone {weights} --data {data} --reals 2 --times 2 --out {out}",
    "report": "report {sets} --out {out}",
    "rank": "rank {sets} --network convnet2 --own {by} --hard {by} --full 1 --out {out}",
    "import": "import {set} --out {out}",
    "look": "look {data} --out {out}.png",
    "convert": "convert {weights} --out {out}",
    **{f"export {layout}": f"export {{set}} --layout {layout} --out {{out}}" for layout in LAYOUTS},
}
CASES["export fkd"] += " --teacher {teacher} --set size=16 --set width=4 --epochs 2"
CASES["export labels"] += " --teacher {teacher}"


def test_every_verb_is_tried():
    tried = {words.split()[0] for words in CASES.values()}
    assert tried | set(QUIET) | set(AS_OTHERS) | {"status"} == set(VERBS) | {"status"}
    assert not tried & set(QUIET)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name[-5:] != ".lock"}


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_is_one_sentence_and_loses_nothing(case, places, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DAP_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr("dap.verbs.caption.Captioner", StandsIn)
    out = tmp_path / "room" / "out"
    out.parent.mkdir()
    (by,) = {json.loads(line)["protocol"] for line in (places["set"] / "trials.jsonl").read_text().splitlines()}
    words = [word.format(out=out, by=by, **places) for word in CASES[case].split()]
    stopped, before = 0, dict[str, bytes]()
    given = {name: files(place) for name, place in places.items() if place.is_dir()}
    # Trainings of backbones take seconds to start.
    for limit in LIMITS[::3] if words[0].endswith("-backbone") else LIMITS:
        with limited(limit):
            status = main(words)
        said = capsys.readouterr().err
        stopped += status
        if status:
            *rest, last = said.splitlines()
            assert last.startswith("dap: error: ") and "cannot be written" in last, said
            assert str(tmp_path) in last, "the path is named"
            assert "What was made is kept" in last and "run the same again" in last and "Traceback" not in said
            assert not any(line.startswith("dap: error") for line in rest)
        after = files(out.parent)
        assert not [name for name in after if "/.tmp-" in name]
        made = {name for name in before if "/images/" in name or name.endswith(".safetensors")}
        assert {name: after.get(name) for name in made if ".partial" not in name} == {
            name: before[name] for name in made if ".partial" not in name
        }
        before = after
    assert stopped, "no limit stopped it"
    if status:
        assert main(words) == 0, capsys.readouterr().err
    if words[0] in ("distill", "import"):
        assert DistilledSet.open(out).verify() == []
    assert not [name for name in files(out.parent) if ".partial" in name or "/.tmp-" in name]
    whole = files(out.parent)
    with limited(0):  # and what is whole stays whole, whether or not it is written again
        main(words)
    assert {name: data for name, data in files(out.parent).items() if name in whole} == whole
    assert given == {name: files(place) for name, place in places.items() if place.is_dir()}, "and so does what is read"


class StandsIn:
    """A captioner without weights."""

    def __init__(self, *_: object, **__: object) -> None:
        self.ask = None

    def __call__(self, images, ask=None):
        return [f"seen {image.mean():.4f}" for image in images]


WRITERS = {
    "torch.save": lambda path: torch.save({"x": torch.zeros(10_000)}, path),
    "torch.save into a file": lambda path: torch.save({"x": torch.zeros(10_000)}, path.open("wb")),
    "python": lambda path: path.write_bytes(bytes(10_000)),
    "copy": lambda path: shutil.copyfile(sys.executable, path),
}


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("writer", [*WRITERS, "safetensors", "pyarrow"])
def test_each_library_s_own_writer_names_the_path(writer, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors.torch import save_file

    table = pa.table({"x": torch.rand(10_000).numpy()})
    more = {
        "safetensors": lambda path: save_file({"x": torch.zeros(10_000)}, path),
        "pyarrow": lambda path: parquet.write_table(table, path),
    }
    path = tmp_path / "file"
    with limited(1000), pytest.raises(OSError) as caught, writing(path):
        {**WRITERS, **more}[writer](path)
    assert caught.value.errno in REFUSED and str(path) in told(caught.value)


def test_numbers_of_errors_are_read_in_messages_of_libraries():
    for said in ("I/O error: No space left on device (os error 28)", "[Errno 28] No space left on device"):
        found = refusal(RuntimeError(said))
        assert found is not None and found.errno == errno.ENOSPC
    assert refusal(RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")) is not None
    assert refusal(RuntimeError("shapes differ")) is None and refusal(FileNotFoundError(2, "x", "y")) is None
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise ValueError("cannot encode") from error
    except ValueError as error:
        found = refusal(error)
    assert found is not None and "quota" in told(found)


def test_what_is_no_refusal_stays_as_it_is(tmp_path):
    for error in (DapError("a sentence"), KeyError("x"), FileNotFoundError(2, "No such file", "elsewhere")):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_a_line_is_added_as_a_whole_or_not_at_all(tmp_path):
    file = tmp_path / "lines.jsonl"
    append(file, "first\n")
    with limited(10), pytest.raises(OSError, match="lines.jsonl"):
        append(file, "a second one\n")
    assert file.read_text() == "first\n"
    append(file, "a second one\n")
    assert file.read_text() == "first\na second one\n"


def test_nothing_is_left_of_a_file_that_was_not_whole(tmp_path):
    with limited(1000), pytest.raises(OSError) as caught, replacing(tmp_path / "x.pt") as file:
        torch.save({"x": torch.zeros(10_000)}, file)
    assert caught.value.filename == str(tmp_path / "x.pt") and not list(tmp_path.iterdir())


SCRIPT = """
import sys
from dap.cli.main import main
words, folder = sys.argv[2:], sys.argv[1]
made = [main(["distill", *words, "--ipc", "12", "--out", folder + "/set"])]
open(folder + "/filler", "wb").close()
import os
room = os.statvfs(folder)
with open(folder + "/filler", "wb", buffering=0) as file:
    try:
        while True: file.write(bytes(4096))
    except OSError: pass
again = [main(["export", folder + "/set", "--layout", layout, "--out", folder + "/" + layout]) for layout in ("pt", "parquet")]
again.append(main(["report", folder + "/set", "--out", folder + "/page"]))
os.remove(folder + "/filler")
print(made, again, main(["verify", folder + "/set"]), sorted(os.listdir(folder)))
"""


def with_mount(mount: str) -> list[str]:
    """The words that let the command after them alone see a disk. Where nobody may mount one, the test is skipped."""
    words = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    probe = subprocess.run([*words, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"this system lets nobody mount a disk here: {probe.stderr.strip()}")
    return words


def test_on_a_disk_that_is_really_full(colours, tmp_path):
    """A file system of 1 MiB in memory, filled to the last block."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*with_mount(f"mount -t tmpfs -o size=1m none {disk}"), sys.executable, "-P", "-c", SCRIPT, str(disk)]
    done = subprocess.run(
        [*command, "--method", "random", "--data", str(colours), "--quiet"],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert "[0] [1, 1, 1] 0 ['page', 'set']" in done.stdout, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(lines) == 3 and all("cannot be written: the disk is full" in line for line in lines), done.stderr
    assert [name in line for name, line in zip(("/pt", "/parquet", "/page"), lines, strict=True)] == [True] * 3


BY_THEMSELVES = {
    "base/files.py": "the one place through which files are written",
    "cost.py": "clears a counter in /proc",
    "pretraining/training.py": "diffusers writes a folder, inside `writing`",
    "verbs/planning/networks.py": "copies a file of captions to the system's folder for temporary files",
    "backbones/converting/parts.py": "a configuration for diffusers' loader, in the system's folder for temporary files",
    "backbones/converting/convert.py": "diffusers writes a folder, inside `writing`",
    "verbs/planning/backbones.py": "the small parts of a pipeline, inside `writing`, in the system's folder for temporary files",
    "cli/completion.py": "hands the script of a shell to cyclopts",
}


def test_nothing_else_writes_a_file_by_itself():
    """A new writer goes through `base.files`, or stands in `writing` and here with its reason."""
    import ast

    import dap

    root, found = Path(dap.__file__).parent, set[str]()
    for file in root.rglob("*.py"):
        if file.is_relative_to(root / "starter"):  # scripts that made the starter; no verb runs them
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            words = [
                one.value for one in (*node.args, *(k.value for k in node.keywords)) if isinstance(one, ast.Constant)
            ]
            memory = any(k.arg == "fileobj" for k in node.keywords)
            mode = (
                name == "open"
                and not memory
                and any(isinstance(w, str) and set(w) & set("wax") and len(w) < 4 for w in words)
            )
            if mode or name in (
                "write_bytes",
                "write_text",
                "save_file",
                "save_pretrained",
                "copyfile",
                "copy2",
                "copytree",
            ):
                found.add(file.relative_to(root).as_posix())
    assert found <= set(BY_THEMSELVES), sorted(found - set(BY_THEMSELVES))
