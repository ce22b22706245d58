"""Output that nobody reads to its end, as in `dap methods | head -1`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dap.cli import main as command


@pytest.mark.parametrize("arguments", [["methods", "dm"], ["methods", "--json"]])
def test_a_reader_that_goes_away_is_no_error(arguments):
    """The pipe is closed before the first word, so that the place at which it breaks does not depend on its buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        said = subprocess.run(
            [sys.executable, "-m", "dap", *arguments], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert said.returncode in (141, -signal.SIGPIPE) and said.stderr == ""


def test_another_broken_pipe_is_told(monkeypatch, capsys):
    """Such as that of a process that died: the output of this one is read."""
    error = BrokenPipeError(32, "Broken pipe")
    monkeypatch.setattr(command, "_show", lambda told, output: (_ for _ in ()).throw(error))
    assert command.main(["methods", "dm"]) == 1
    assert "dap: error: Broken pipe" in capsys.readouterr().err
