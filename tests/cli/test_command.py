"""The command as a program: what it imports, how its help, suggestions, JSON and completion are."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from dap.cli.main import build_app, main
from dap.cli.verbs import VERBS
from dap.methods import SUMMARIES

PEOPLE = [name for name, verb in VERBS.items() if verb.says]
"""The verbs that are for people."""

HEAVY = ["torch", "torchvision", "diffusers", "transformers", "numpy", "scipy", "sklearn", "PIL", "pyarrow", "pandas"]
MODELS = [*HEAVY, "pydantic", "yaml"]


def imported(code: str, *names: str) -> set[str]:
    """Which of these modules a new process has imported after it has run the code."""
    code = (
        "import contextlib, io, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        + "".join(f"    {line}\n" for line in code.splitlines())
        + f"print(*sorted(set({list(names)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_dap_imports_nothing_else():
    assert not imported("import dap", *MODELS, "cyclopts", "rich")


def test_the_list_of_verbs_and_a_misspelt_verb_import_no_model():
    code = (
        "from dap.cli.main import main\n"
        "main(['--help']), main(['--version']), main([])\n"
        "with contextlib.suppress(SystemExit): main(['destill'])"
    )
    assert not imported(code, *MODELS)


def test_help_of_no_verb_imports_what_works_with_images():
    """Verbs with recipe flags read the pydantic models of recipes; nothing heavier is needed to explain a verb."""
    light = [name for name in PEOPLE if not VERBS[name].home.startswith("making:")]
    code = "from dap.cli.main import main\nfor name in {}: main([name, '--help'])"
    assert not imported(code.format(light), *MODELS)
    assert not imported(code.format(PEOPLE), *HEAVY)
    wrong = "from dap.cli.main import main\nwith contextlib.suppress(SystemExit): main(['distill', '--ippc', '3'])"
    assert not imported(wrong, *HEAVY)


@pytest.mark.parametrize("name", PEOPLE)
def test_help_has_what_a_reader_needs(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: dap {name}") and "Output" in told and "--json" in told and "--quiet" in told
    assert len(VERBS[name].examples) == 2 and all(f"  {example}\n" in told for example in VERBS[name].examples)
    assert max(map(len, told.splitlines())) <= 100


def test_help_of_method_names_every_method(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["distill", "--help"]) == 0
    told = re.search(r"--method .*?(?=│ --)", capsys.readouterr().out, re.DOTALL)
    assert told and set(SUMMARIES) <= set(re.findall(r"[\w-]+", told[0]))


@pytest.mark.parametrize(("name", "example"), [(name, e) for name in PEOPLE for e in VERBS[name].examples])
def test_examples_can_be_read(name, example):
    words = shlex.split(example)
    assert words[0] == "dap" and words[1] == name and len(example) <= 78
    command, bound, _ = build_app().parse_args(words[1:], print_error=False, exit_on_error=False)
    assert bound.args or bound.kwargs or words[2:] == []
    assert callable(command)


CHEAP = {
    "distill": ["dap distill --method random --ipc 1 --out runs/random"],
    "verify": ["dap verify runs/random", "dap verify runs/random --json"],
    "methods": ["dap methods mgd3"],
    "check": ["dap check rbf"],
    "export": ["dap export runs/random --layout parquet --out hub/mine"],
    "report": ["dap report runs --out report"],
}
"""Examples that take seconds, in an order in which each finds what it needs."""


def test_cheap_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, examples in CHEAP.items():
        for example in examples:
            assert example in VERBS[name].examples
            assert main(shlex.split(example)[1:]) == 0, capsys.readouterr().err
            assert capsys.readouterr().out


def test_json_is_one_object_and_quiet_is_silent(tmp_path, capsys):
    out = tmp_path / "set"
    make = ["distill", "--method", "random", "--ipc", "1", "--out", str(out)]
    assert main([*make, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"set": str(out), "images": 10, "page": str((out / "report.html").resolve())}
    for words in (make, ["verify", str(out)], ["methods"], ["check", "rbf"], ["report", str(out), "--out", str(out)]):
        assert main([*words, "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")
        assert main([*words, "--quiet", "--json"]) == 0
        told = capsys.readouterr()
        assert isinstance(json.loads(told.out), dict) and told.err == ""
    assert main(["verify", str(tmp_path / "nowhere"), "--json", "--quiet"]) == 1
    told = capsys.readouterr()
    assert told.err == f"dap: error: {json.loads(told.out)['error']}\n"
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "--jsn", "--json"])
    assert "--jsn" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["destill"], "Did you mean 'distill'?"),
        (["distill", "--ipcc", "3", "--out", "x"], "Did you mean --ipc?"),
        (["distill", "--solver", "ddpn", "--out", "x"], 'Did you mean "ddpm"?'),
        (["evaluate", "x", "--on", "validatoin"], 'Did you mean "validation"?'),
        (["distill"], "--out"),
        (["compare", "--out", "x", "--ipc", "1,,2"], "whole numbers of at least 1"),
        (["train-teacher", "--data", "x", "--out", "y", "--epochs", "none"], "a whole number of at least 1"),
        (["verify", "a", "b"], "b"),
    ],
)
def test_what_is_misspelt_gets_a_suggestion_and_status_2(words, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1 and not told.out
    assert told.err.endswith("--help lists what can be given.\n") and ": error: " in told.err


def test_the_statuses_are_documented(capsys):
    assert main(["--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Exit status: 0 the work is done; 1 " in told and "2 the command line cannot be read" in told
    assert "130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP) the work was interrupted" in told and "NO_COLOR" in told


@pytest.mark.parametrize("where", [["--debug", "verify"], ["verify", "--debug"]])
def test_debug_shows_the_trace(where, tmp_path, capsys):
    from dap.base.errors import DapError

    words = [*where, str(tmp_path / "nowhere")]
    with pytest.raises(DapError):
        main(words)
    assert main([word for word in words if word != "--debug"]) == 1
    assert capsys.readouterr().err.startswith("dap: error: ")


@pytest.mark.parametrize("colour", [True, False])
def test_no_color_takes_colours_off_the_help(colour):
    settings = {"FORCE_COLOR": "1", "TERM": "xterm-256color"} if colour else {"NO_COLOR": "1", "TERM": "xterm-256color"}
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    done = subprocess.run(
        [sys.executable, "-m", "dap", "--help"], capture_output=True, text=True, env={**plain, **settings}
    )
    assert done.returncode == 0 and bool(re.search("\x1b\\[[0-9;]*m", done.stdout)) == colour


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_every_shell(shell, tmp_path, capsys):
    file = tmp_path / f"dap.{shell}"
    assert main(["--install-completion", "--shell", shell, "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    for word in (*PEOPLE, "cfg-channels", "dpm++2m-sde", "install-completion"):
        assert word.removeprefix("--") in text, word
    assert "worker " not in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(file)], check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["dist"], ["distill"]),
        (["distill", "--cfg-"], ["--cfg-channels"]),
        (["distill", "--solver", "dpm++2m-"], ["dpm++2m-sde"]),
        (["distill", "--method", "dap-"], ["dap-slots"]),  # bash asks the command itself for these
    ],
)
def test_bash_completes(words, found, tmp_path):
    command, script = tmp_path / "dap", tmp_path / "dap.bash"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dap "$@"\n')
    command.chmod(0o700)
    assert main(["--install-completion", "--shell", "bash", "--out", str(script)]) == 0
    complete = re.search(r"complete .*-F (\S+) dap", script.read_text(encoding="utf-8"))
    assert complete
    line = " ".join(shlex.quote(word) for word in [str(command), *words])
    code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; {complete[1]}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert [word.strip() for word in done.stdout.splitlines()] == found
