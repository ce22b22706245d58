"""Files that replace others at once, while other processes clean up."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dap.base.files import write_atomically


def test_a_folder_that_another_process_removes_while_it_is_empty_is_made_again(tmp_path, monkeypatch):
    really, times = Path.mkdir, []

    def mkdir(self, *args, **kwargs):
        really(self, *args, **kwargs)
        times.append(self)
        if len(times) <= 2:
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    write_atomically(tmp_path / "checkpoints" / "one.pt", b"x")
    assert (tmp_path / "checkpoints" / "one.pt").read_bytes() == b"x" and len(times) == 3


def test_a_refusal_names_the_file_that_the_user_knows(tmp_path, monkeypatch):
    def refused(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError) as found:
        write_atomically(tmp_path / "one.pt", b"x")
    assert found.value.filename == str(tmp_path / "one.pt")
