"""A folder of a million images is listed once a process, and its files are looked at once, however many cells there are."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from dap.cli.main import main
from dap.data.real import identity

SMALL = ["--protocol", "small-hard", "--networks", "convnet1", "--epochs", "1", "--set", "width=4", "--set", "size=8"]


@pytest.fixture
def counted(monkeypatch):
    """How many entries were read of each folder, and how many times the file marks of each were asked for."""
    entries, marks = Counter(), Counter()
    really_scan, really_mark = os.scandir, identity._marks

    class Scan:
        def __init__(self, path):
            self.path, self.found = os.fspath(path), really_scan(path)

        def __iter__(self):
            return self

        def __next__(self):
            entry = next(self.found)
            entries[self.path] += 1
            return entry

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.found.close()

    def marked(root, files):
        marks.update(os.path.join(root, file) for file in files)
        return really_mark(root, files)

    monkeypatch.setattr(os, "scandir", lambda path=".": Scan(path))
    monkeypatch.setattr(identity, "_marks", marked)
    return entries, marks


def test_a_sweep_lists_its_data_once(colours, tmp_path, counted):
    entries, marks = counted
    varied = ["--vary", "ipc=1,2", "--vary", "size=8,12", "--method", "random", "--sets", "1"]
    assert main(["sweep", "--data", str(colours), *varied, *SMALL, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert len(list((tmp_path / "out").rglob("trials.jsonl"))) == 4
    for split, count in (("train", 12), ("test", 6)):
        for name in ("red", "green", "blue"):
            folder = str(colours / split / name)
            # Whether a folder holds images at all is asked a few times, and the first image answers.
            assert entries[folder] <= count + 6, f"{entries[folder]} entries of {count} in {folder}"
            times = {marks[os.path.join(folder, f"{index}.png")] for index in range(count)}
            assert times == {1}, f"the files of {folder} were looked at {times} times"


def test_a_folder_of_two_links_is_read_under_the_first_name(tmp_path):
    from dap.data.real.finding.walking import image_files

    for place in ("store", "train/cat"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "store" / "a.png").write_bytes(b"")
    for name in ("z", "b", "m"):
        (tmp_path / "train" / "cat" / name).symlink_to(tmp_path / "store")
    assert image_files(tmp_path / "train" / "cat") == ["cat/b/a.png"]
