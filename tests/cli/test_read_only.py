"""Every verb that writes, into a place that can only be read: one sentence that names the place that the user gave."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_full_disk import CASES, places, with_mount  # noqa: F401 - the fixture

from dap.base.disk import aside_of, known, told

SCRIPT = """
import contextlib, io, json, os, sys
from dap.cli.main import main
import dap.verbs.caption
dap.verbs.caption.Captioner = lambda *_, **__: exit("the captioner was loaded before the place was tried")
from torch.nn.modules.module import register_module_forward_pre_hook
ran = []
register_module_forward_pre_hook(lambda *_: ran.append(1))
told = {}
for case, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        told[case] = [main(words), err.getvalue(), len(ran)]
    ran.clear()
print(json.dumps(told))
"""


def test_a_place_that_can_only_be_read_is_named_as_it_was_given(places, tmp_path):  # noqa: F811
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = with_mount(f"mount -t tmpfs none {disk} && mount -o remount,ro {disk}")
    (by,) = {json.loads(line)["protocol"] for line in (places["set"] / "trials.jsonl").read_text().splitlines()}
    words = {case: [word.format(out=disk / "out", by=by, **places) for word in CASES[case].split()] for case in CASES}
    for case, flag in (("export labels", "here/cache"), ("distill, cache", "here/cache")):
        words[f"{case}, deep"] = [word.replace(str(disk / "out"), str(disk / flag)) for word in words[case]]
    done = subprocess.run(
        [*namespace, sys.executable, "-P", "-c", SCRIPT, json.dumps(words)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    early = dict[str, int]()
    for case, (status, said, ran) in json.loads(done.stdout).items():
        last = said.splitlines()[-1] if said else ""
        assert status == 1 and last.startswith("dap: error: ") and "Traceback" not in said, (case, said)
        named = re.search(rf"{re.escape(str(disk))}\S*", last)
        assert named and "/." not in named[0], (case, last)
        assert "cannot be written" in last, (case, last)
        assert "Give a" in last, (case, last)
        early |= {case: ran} if ran else {}
    assert not early, "passes through networks before the place was tried"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_no_message_names_a_hidden_file_of_ours(number, tmp_path):
    hidden = {
        aside_of(tmp_path / "x.json"): tmp_path,
        aside_of(tmp_path / "folder") / "images" / "0.png": tmp_path,
        tmp_path / ".set.partial" / "a.png": tmp_path / "set",
        tmp_path / ".set.partial": tmp_path / "set",
        tmp_path / ".set.lease": tmp_path / "set",
        tmp_path / ".abc.lock": tmp_path,
        tmp_path / "set" / ".lock": tmp_path / "set",
    }
    for path, name in hidden.items():
        assert known(path) == name
        assert str(name) in (said := told(OSError(number, os.strerror(number), str(path)))) and "/." not in said
    for mine in (Path("/a/.config/dap/x"), Path(".partial"), Path("a/.tmp-mine"), Path("x.partial")):
        assert known(mine) == mine
