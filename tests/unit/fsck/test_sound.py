"""A check of a sound store finds nothing and changes nothing, while others write, too; and what is no store."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from store import compaction
from store.errors import FormatError, StoreNotFound
from store.fsck import Severity, check_store, layout
from store.fsck.context import Context
from store.library import open_store
from tests.support.checked import LONG, Made, flip
from tests.support.waiting import wait_for

GOLDEN = Path(__file__).parents[2] / "golden" / "v1" / "store"


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_store_is_clean(made: Made, full: bool):  # noqa: FBT001
    report = made.check(full=full)
    assert [found for found in report.findings if found.severity < Severity.INFO] == []
    assert report.exit_code == 0
    assert (report.counts.logs, report.counts.blobs) == (4, 4)
    assert report.counts.bytes > len(LONG)


def test_the_frozen_store_of_format_1_is_clean(tmp_path: Path):
    root = tmp_path / "store"
    shutil.copytree(GOLDEN, root)
    for path in (root, *root.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)  # git keeps no modes
    report = check_store(root, full=True)
    assert [found for found in report.findings if found.severity < Severity.INFO] == []


def test_checking_changes_nothing(made: Made):
    def everything() -> dict[str, tuple[int, bytes]]:
        paths = sorted(path for path in made.root.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    flip(made.log("trip"), 300)
    before = everything()
    made.check()
    assert everything() == before


def test_it_can_run_while_others_write(made: Made):
    """Appends, whole batches, attachments and truncations, while the store is checked again and again."""
    stop = threading.Event()
    rounds = [0]

    async def write() -> None:
        async with open_store(f"file://{made.root}") as store:
            workspace = await store.workspace("demo")
            chat, other = await workspace.chat("trip"), await workspace.chat("cut")
            while not stop.is_set():
                rounds[0] += 1
                await chat.append_events([{"role": "user", "content": "x" * 5000}] * 9, "test")
                await chat.attach(f"a{rounds[0] % 7}.txt", b"%d" % rounds[0], "test")
                if rounds[0] % 5 == 0:
                    await compaction.compact(other, keep=0)
                    await other.append_events([{"role": "user", "content": "again"}], "test")
                    await chat.space.keep_snapshot()

    thread = threading.Thread(target=trio.run, args=(write,))
    thread.start()
    try:
        for _ in range(8):
            begun = rounds[0]
            assert made.problems(full=False) == []
            wait_for(lambda begun=begun: rounds[0] > begun or not thread.is_alive(), 20)
    finally:
        stop.set()
        thread.join(30)
    assert rounds[0] >= 8
    assert made.problems() == []


def test_a_directory_that_the_first_blob_with_its_name_makes_meanwhile_is_no_stranger(
    made: Made, monkeypatch: pytest.MonkeyPatch
):
    usual = layout.check_directory

    def check_directory(context: Context, directory: Path, *how: Any) -> None:
        if directory.name == "objects":
            new = next(path for path in (directory / f"{number:02x}" for number in range(256)) if not path.exists())
            new.mkdir(mode=0o700)
        usual(context, directory, *how)

    monkeypatch.setattr(layout, "check_directory", check_directory)
    assert made.problems() == []


def test_what_is_no_store(tmp_path: Path):
    with pytest.raises(StoreNotFound):
        check_store(tmp_path / "nothing")
    (tmp_path / "store.json").write_bytes(b'{"format": 999, "id": "x"}')
    with pytest.raises(FormatError):
        check_store(tmp_path)
