"""Files that replace others at once, while other processes clean up."""

from __future__ import annotations

from pathlib import Path

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
