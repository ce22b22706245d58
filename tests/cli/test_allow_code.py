"""A stranger's files run nothing: every way in, tried with a file that leaves a mark where it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dap import Machine, allow_code, classify, distill, load_protocol
from dap.base import registry
from dap.base.errors import DapError
from dap.cli.main import main
from dap.recipe import Recipe

EVIL = """
open({mark!r}, "w").close()
import torch
from dap.methods.selection.random import Random
from dap.kernels import Linear

class X(Random):
    pass

class K(Linear):
    pass

def net(*, channels, classes, size, **others):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size * size, classes))

def teach(names):
    return lambda images: images.mean((2, 3))[:, : len(names)]
"""
REFUSED = "Read the code; if you trust it, add --allow-code."
SHORT = ["--device", "cpu", "--networks", "convnet1", "--epochs", "1", "--set", "size=8", "--set", "width=4"]
COMMAND = [sys.executable, "-P", "-m", "dap"]


@pytest.fixture
def evil(tmp_path) -> Path:
    file = tmp_path / "evil.py"
    file.write_text(EVIL.format(mark=str(tmp_path / "ran")))
    return file


@pytest.fixture
def made(tmp_path, colours) -> Path:
    """A set of real images, as somebody may have downloaded it."""
    out = tmp_path / "SET"
    distill(out=out, method="random", ipc=1, data=str(colours), size=8)
    return out


def ran(evil: Path) -> bool:
    return (evil.parent / "ran").exists()


def run(*words: object) -> int:
    return main([str(word) for word in words])


def says(made: Path, **changes: object) -> None:
    """Write other values into a set's recipe.json."""
    recipe = json.loads((made / "recipe.json").read_text())
    (made / "recipe.json").write_text(json.dumps({**recipe, **changes}))


def forget(evil: Path) -> None:
    """As in a new process, where the code has not been run."""
    (evil.parent / "ran").unlink()
    registry._LOADED.clear()
    for name in [name for name in sys.modules if name.startswith("dap_user_evil")]:
        del sys.modules[name]


def stranger(evil: Path, colours: Path, name: str = "net") -> Path:
    """A teacher file whose metadata name code."""
    file = evil.parent / "teacher.safetensors"
    words = ["--data", colours, "--protocol", "reference", "--device", "cpu", "--epochs", 1, "--set", "size=8"]
    assert run("train-teacher", *words, "--network", f"{evil}:{name}", "--out", file) == 0
    forget(evil)
    return file


def test_a_sets_recipe_runs_no_backbone(made, evil, capsys):
    says(made, backbone={"path": f"{evil}:X"})
    assert run("classify", made, "--device", "cpu") == 1
    assert f"recipe.json names the code {evil}:X, which does not stand on the command line" in (
        said := capsys.readouterr().err
    )
    assert REFUSED in said and not ran(evil)
    with pytest.raises(DapError, match="with dap.allow_code"):
        classify(made)
    assert not ran(evil)
    assert run("classify", made, "--device", "cpu", "--allow-code") == 1, "it runs now, and is no backbone"
    assert "is not a backbone but a X" in capsys.readouterr().err and ran(evil)


def test_a_sets_recipe_runs_no_backbone_in_a_process_of_its_own(made, evil):
    says(made, backbone={"path": f"{evil}:X"})
    done = subprocess.run([*COMMAND, "classify", str(made)], capture_output=True, text=True, cwd=evil.parent)
    assert (done.returncode, ran(evil)) == (1, False) and REFUSED in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(
        [*COMMAND, "classify", str(made), "--allow-code"], capture_output=True, text=True, cwd=evil.parent
    )
    assert ran(evil) and f"dap: running the code {evil}:X, which {made}/recipe.json names (sha256 " in done.stderr


def test_verbs_that_only_look_run_nothing(made, evil, capsys, colours, tmp_path):
    """A set may name code everywhere: verbs that need none of it neither run it nor refuse the set."""
    spec = f"{evil}:X"
    says(
        made,
        method=spec,
        options={"network": spec, "nets": [spec]},
        classifier=spec,
        captions=spec,
        backbone={"path": spec, "template": spec},
        guidance={"kernel": f"0.5 * {spec}", "layer": spec},
        own_guidance={"path": spec},
    )
    assert run("verify", made) == 0
    assert run("export", made, "--out", tmp_path / "out") == 0
    assert run("import", made, "--out", tmp_path / "copy") == 0
    assert run("evaluate", made, *SHORT) == 0
    assert run("report", made, "--out", tmp_path / "page") == 0
    run("rank", made)
    assert not ran(evil)


@pytest.mark.parametrize("where", ["teacher", "reference"])
def test_a_teachers_metadata_run_nothing(made, evil, colours, where, capsys):
    file = stranger(evil, colours)
    how = ["--set", "labels={kind: soft, temperature: 1}"] if where == "teacher" else []
    words = ["evaluate", made, *SHORT, *how, f"--{where}", file]
    assert run(*words) == 1
    assert f"teacher.safetensors names the code {evil}:net" in (said := capsys.readouterr().err) and REFUSED in said
    assert not ran(evil)
    assert run(*words, "--allow-code") == 0 and ran(evil)
    # What the command line names needs no permission.
    assert run(*words, "--networks", f"convnet1,{evil}:net") == 0


def test_a_protocol_of_a_stranger_runs_no_network(made, evil, tmp_path, capsys):
    first, second = tmp_path / "base.yaml", tmp_path / "p.yaml"
    first.write_text(f"extends: quick-hard\nname: base\nnetwork: {evil}:net\nsize: 8\n")
    second.write_text("extends: base.yaml\nname: mine\nepochs: 1\n")
    case = tmp_path / "case.yaml"
    case.write_text(f"extends: quick-hard\nname: case\ncases: [{{when: {{ipc: 1}}, set: {{network: '{evil}:net'}}}}]\n")
    for file in (first, second, case):
        assert run("evaluate", made, "--protocol", file, "--device", "cpu") == 1
        assert f"names the code {evil}:net" in (said := capsys.readouterr().err) and REFUSED in said, file
        assert run("train-teacher", "--data", tmp_path, "--out", tmp_path / "t", "--protocol", file) == 1
        assert REFUSED in capsys.readouterr().err
        with pytest.raises(DapError, match="names the code"):
            load_protocol(file)
    assert not ran(evil)
    assert load_protocol(second, network="convnet1").network == "convnet1"  # replaced, so it does not count
    with allow_code():
        assert load_protocol(second).network == f"{evil}:net"
    assert run("evaluate", made, "--protocol", second, "--device", "cpu", "--allow-code") == 0 and ran(evil)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("method", "{}:X"),
        ("method", "os:getcwd"),
        ("guidance", {"kernel": "{}:K"}),
        ("guidance", {"kernel": "0.5 * {}:K"}),
        ("own_guidance", {"path": "{}:X"}),
        ("backbone", {"path": "{}:X"}),
        ("classifier", "{}:teach"),
        ("options", {"network": "{}:net"}),
        ("options", {"deep": {"nets": ["{}:net"]}}),
    ],
)
def test_a_recipe_of_a_stranger_runs_nothing(section, value, evil, colours, tmp_path, capsys):
    named = json.loads(json.dumps(value).replace("{}", str(evil)))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"method": "random", "ipc": 1, "data": {"path": str(colours)}, section: named}))
    for words in (
        ["distill", file, "--out", tmp_path / "o"],
        ["sweep", file, "--out", tmp_path / "o", "--sets", 1],
        ["compare", file, "--out", tmp_path / "o", "--methods", "random", "--sets", 1],
    ):
        assert run(*words) == 1
        assert "recipe.yaml names the code" in (said := capsys.readouterr().err) and REFUSED in said, words
    with pytest.raises(DapError, match="names the code"):
        distill(file, tmp_path / "o")
    with pytest.raises(DapError, match="names the code"):
        Recipe.load(file)
    assert not ran(evil) and not (tmp_path / "o").exists()


def test_a_permission_is_announced_and_what_is_repeated_on_the_command_line_needs_none(evil, colours, tmp_path, caplog):
    file, out = tmp_path / "recipe.yaml", tmp_path / "o"
    file.write_text(yaml.safe_dump({"method": f"{evil}:X", "ipc": 1, "data": {"path": str(colours), "size": 8}}))
    assert run("distill", file, "--out", out, "--allow-code") == 0 and ran(evil)
    assert f"running the code {evil}:X, which {file} names (sha256 " in caplog.text
    caplog.clear()
    words = ["distill", "--data", colours, "--size", 8, "--ipc", 1, "--method", f"{evil}:X", "--out"]
    assert run(*words, tmp_path / "own") == 0, "one's own method"
    assert run(*words, tmp_path / "own") == 0, "and one's own set again, whose recipe.json names it"
    assert run("distill", file, "--method", f"{evil}:X", "--out", out) == 0
    assert "running the code" not in caplog.text
    distill(file, out, machine=Machine(allow_code=True))
    assert "running the code" in caplog.text


def test_workers_get_what_their_parent_may_run_and_a_job_is_no_way_in(evil, colours, tmp_path, monkeypatch, caplog):
    from dap.verbs import cells

    given: list[list[str]] = []
    jobs: list[str] = []

    def in_this_process(arguments, workers, **others) -> None:
        given.append(list(arguments))
        jobs.append(Path(arguments[1]).read_text())
        assert main(arguments) == 0

    monkeypatch.setattr(cells, "run_workers", in_this_process)
    monkeypatch.setattr("dap.base.workers.end_with_parent", lambda: None)
    words = ["--data", colours, "--size", 8, "--ipc", 1, "--sets", 1, "--workers", 2, *SHORT, "--out"]
    assert run("compare", "--methods", f"random,{evil}:X", *words, tmp_path / "a") == 0
    assert given[0][2:] == ["--code", f"{evil}:X"]
    assert "running the code" not in caplog.text
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"method": f"{evil}:X"}))
    assert run("sweep", file, "--allow-code", *words, tmp_path / "b") == 0
    assert given[1][2:] == ["--allow-code"]
    assert f"running the code {evil}:X" in caplog.text

    assert json.loads(jobs[1])["machine"]["allow_code"], "the job says what its parent may do"
    forget(evil)
    job = tmp_path / "grid.json"
    job.write_text(jobs[1])
    assert run("worker", job) == 1, "and this is no permission"
    assert not ran(evil)


def test_names_of_libraries_reach_no_other_attribute(made, capsys):
    names = ("torchvision:../..", "torchvision:__class__", "torchvision:io.read_file", "timm:../x", "timm:hf-hub:a/b")
    for name in names:
        assert run("evaluate", made, "--device", "cpu", "--networks", name) == 1
        assert "has no" in (said := capsys.readouterr().err) and "Traceback" not in said, name
    assert run("evaluate", made, "--device", "cpu", "--reference", "torchvision:__class__") == 1


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("vae", ["evil", "X"]),
        ("vae", ["os", "system"]),
        ("transformer", ["transformers", "AutoModel"]),
        ("_class_name", ["evil", "X"]),
        ("feature_extractor", ["evil", "X"]),
    ],
)
def test_a_backbones_folder_runs_nothing(part, value, pipeline_folder, tmp_path, evil, monkeypatch, capsys):
    import shutil

    folder = shutil.copytree(pipeline_folder, tmp_path / "backbone")
    for where in (folder, folder / "vae", folder / "transformer"):
        shutil.copy(evil, where / "evil.py")
        shutil.copy(evil, where / "pipeline.py")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, part: value}))
    monkeypatch.syspath_prepend(str(folder))
    assert run("check", folder, "--device", "cpu") == 1
    assert "dap runs no code of a backbone's folder" in capsys.readouterr().err and not ran(evil)


def test_a_captioner_runs_no_code_of_its_folder(tmp_path, evil, colours, capsys):
    import shutil

    folder = tmp_path / "captioner"
    folder.mkdir()
    shutil.copy(evil, folder / "evil.py")
    auto = dict.fromkeys(("AutoConfig", "AutoProcessor", "AutoModelForImageTextToText"), "evil.X")
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "mine", "auto_map": auto, "processor_class": "X"}))
    assert run("caption", "--data", colours, "--out", tmp_path / "c.jsonl", "--model", folder, "--device", "cpu") == 1
    assert not ran(evil) and "captioner" in capsys.readouterr().err
    assert not any("evil" in name for name in sys.modules if name.startswith("transformers_modules"))


def test_metadata_of_a_teacher_are_read_through_a_closed_model(tmp_path, colours, capsys):
    good = tmp_path / "good.safetensors"
    words = ["--data", colours, "--device", "cpu", "--epochs", 1, "--set", "size=8", "--set", "width=4"]
    assert run("train-teacher", *words, "--network", "convnet1", "--out", good) == 0
    capsys.readouterr()
    from safetensors import safe_open

    from dap.evaluation.training.loading import load_trained

    with safe_open(good, framework="pt") as file:
        written = file.metadata()
    weights, bad = load_file(good), tmp_path / "bad.safetensors"
    facts, protocol = json.loads(written["facts"]), json.loads(written["protocol"])
    first = next(iter(weights))

    def wrong(message: str, tensors: Any = None, **changes: str) -> None:
        save_file(weights if tensors is None else tensors, bad, {**written, **changes})
        with pytest.raises(DapError, match=message) as told:
            load_trained(bad)
        assert "bad.safetensors" in str(told.value)

    for changed, message in (
        ({"classes": 10**12}, "less than or equal"),
        ({"classes": True}, "a whole number"),
        ({"channels": "3"}, "a whole number"),
        ({"accuracy": 17}, "less than or equal"),
        ({"class_names": ["a"]}, "1 names of 3 classes"),
        ({"class_names": ["a", "a", "b"]}, "the same name"),
        ({"class_names": ["a", "b", 3]}, "a text"),
        ({"more": 1}, "no such key"),
    ):
        wrong(message, facts=json.dumps({**facts, **changed}))
    wrong("is not JSON", facts="{")
    wrong("is not a number", facts='{"accuracy": NaN}')
    wrong("nested more than", facts="[" * 10**5)
    wrong("network needs", protocol=json.dumps({**protocol, "width": 60_000}))
    wrong("network needs", {**weights, "another": torch.zeros(1)})
    wrong("network needs", {name: value for name, value in weights.items() if name != first})
    wrong("are not finite", {**weights, first: weights[first] * float("nan")})
    save_file(weights, bad)
    with pytest.raises(DapError, match="have no 'protocol'"):
        load_trained(bad)
    fifo = tmp_path / "pipe.safetensors"
    os.mkfifo(fifo)
    with pytest.raises(DapError, match="is a pipe"):
        load_trained(fifo)


@pytest.mark.parametrize("weights", ["pickle", "other", "hash"])
def test_torchs_cache_runs_nothing(weights, tmp_path, monkeypatch):
    """A pickle in the cache of torch.hub runs nothing, be its hash right or wrong."""
    import hashlib

    from torchvision.models import SqueezeNet1_1_Weights

    from dap.evaluation.training.networks.zoo import pretrained

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"pickle": {"a": Evil()}, "other": [1], "hash": {}}[weights], folder / "new.pth")
    digits = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8] if weights != "hash" else "0" * 8
    (folder / "new.pth").rename(folder / f"squeezenet1_1-{digits}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", f"https://nowhere.test/squeezenet1_1-{digits}.pth"
    )
    message = {
        "pickle": "holds other things than weights",
        "other": "holds a list",
        "hash": "is not the file that was publ",
    }
    with pytest.raises(DapError, match=message[weights]):
        pretrained("squeezenet1_1", offline=True)
    assert not (tmp_path / "ran").exists()


def test_files_of_the_current_folder_stand_in_for_nothing(tmp_path, evil):
    """A queue.py or torch.py in the folder where `python -m dap` is run; workers are started with -P besides."""
    for name in ("queue", "torch", "yaml", "numpy", "logging"):
        (tmp_path / f"{name}.py").write_text(evil.read_text())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, "-m", "dap", "methods", "random"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and not ran(evil), done.stderr
