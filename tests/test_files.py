"""Files appear whole or not at all, whatever ends the write; a file's hash does not depend on how it is read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_align.files import hash_file, written_whole

KILLED = """
import os, sys
from pathlib import Path
from lit_align.files import written_whole
with written_whole(Path(sys.argv[1])) as part:
    part.write_text("ha")
    os.kill(os.getpid(), 9)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_seen_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.json"
    with written_whole(target) as part:
        part.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and names(target.parent) == ["file.json"]


def test_an_error_leaves_the_former_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    target.write_text("former")
    with pytest.raises(OSError, match="disk full"), written_whole(target) as part:
        part.write_text("ha")
        raise OSError("disk full")
    assert target.read_text() == "former" and names(tmp_path) == ["file.json"]


def test_a_kill_leaves_the_former_file_and_the_next_write_tidies_up(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    target.write_text("former")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert killed.returncode == -9 and target.read_text() == "former"
    assert names(tmp_path) == ["file.json", "file.json.part"]
    with written_whole(target) as part:
        assert not part.exists()
        part.write_text("new")
    assert target.read_text() == "new" and names(tmp_path) == ["file.json"]


def test_a_folder_takes_the_place_of_the_former_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("old.bin", "new.bin"):
        with written_whole(target) as part:
            part.mkdir()
            (part / name).write_text(name)
    assert names(tmp_path) == ["model"] and names(target) == ["new.bin"]


def test_an_error_in_a_folder_leaves_the_former_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.bin").write_text("old")
    with pytest.raises(ValueError, match="broken"), written_whole(target) as part:
        part.mkdir()
        (part / "new.bin").write_text("half")
        raise ValueError("broken")
    assert names(tmp_path) == ["model"] and names(target) == ["old.bin"]


def test_two_writers_of_a_shared_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "shard"
    with written_whole(target, shared=True) as first, written_whole(target, shared=True) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert target.read_text() == "first" and names(tmp_path) == ["shard"]  # the outer block ends last


def test_the_hash_is_that_of_prefix_and_content(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    content = bytes(range(256)) * 5000  # more than one block
    path.write_bytes(content)
    assert hash_file(path) == hashlib.blake2b(content, digest_size=16).digest()
    assert hash_file(path, 8, b"1") == hashlib.blake2b(b"1" + content, digest_size=8).digest()


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    with written_whole(tmp_path / "file", durable=True) as part:
        part.write_text("whole")
    assert order == ["sync", "replace", "sync"]
