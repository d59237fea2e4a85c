"""Symbolic links (and pipes) in the place of everything that a store has: nothing is read or written through them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from store import durability
from store.gc.sweep import FileSweep
from tests.attacks.conftest import Target, tree
from tests.cli.conftest import REPOSITORY


@contextmanager
def opened_below(*directories: Path) -> Iterator[list[str]]:
    """The names of files in the directories that anybody has opened in the meantime."""
    found: list[str] = []
    with INotify() as watch:
        for directory in directories:
            watch.add_watch(directory, flags.OPEN | flags.ACCESS | flags.MODIFY | flags.CREATE | flags.DELETE)
        yield found
        found += sorted({event.name for event in watch.read(timeout=0) if event.name})


def everything(target: Target) -> list[str]:
    """All that reads, all that repairs and removes, and all that writes; what went wrong."""
    wrong = []
    into = target.root / "exported"
    for words in (
        ("workspace", "ls"),
        ("cat", "demo/trip"),
        ("search", "message"),
        ("export", "--jsonl", "demo", "--output", into),
        ("fsck",),
        ("attach", "demo/trip", Path(__file__)),
        ("gc", "--retention", "0"),
        ("compact", "demo/trip"),
        ("fsck", "--repair"),
    ):
        _, _, err = target.run(*words)
        if "Traceback" in err or "internal error" in err:
            wrong.append(f"{' '.join(map(str, words))}: {err}")
    return wrong


def places(target: Target) -> list[Path]:
    """Every file of the store, and every directory."""
    return sorted(path for path in target.store.rglob("*") if not path.is_symlink() and "instances" not in path.parts)


def kind_of(store: Path, path: Path) -> str:
    """What a file is for: of files for the same, one will do."""
    parts = [part if len(part) < 30 else "ID" for part in path.relative_to(store).parts]
    if parts[0] == "objects":
        parts[1:] = ["group", *(["object" + path.suffix] if len(parts) > 2 else [])]
    return "/".join(parts).replace("snapshots/" + path.name, "snapshots/N" + path.suffix)


def plant(target: Target, place: Path) -> Path:
    """Move what is there outside, and leave a link to it."""
    outside = target.root / "outside"
    outside.mkdir()
    place.rename(outside / "secret")
    place.symlink_to(outside / "secret")
    return outside


@pytest.fixture
def kinds(target: Target) -> dict[str, Path]:
    """One of each kind of file and directory in a store, each in turn with a copy of the whole store around it."""
    target.chat()
    target.run("search", "message")
    target.run("fsck")
    template = target.store.rename(target.root / "template")
    return {kind_of(template, path): path.relative_to(template) for path in sorted(template.rglob("*"))}


@contextmanager
def copied(target: Target) -> Iterator[None]:
    shutil.copytree(target.root / "template", target.store, symlinks=True)
    yield
    for path in (target.store, target.root / "outside"):
        if path.exists():
            shutil.rmtree(path)


def test_no_link_in_a_store_is_followed(target: Target, kinds: dict[str, Path]) -> None:
    followed = {}
    for kind, where in kinds.items():
        with copied(target):
            outside = plant(target, target.store / where)
            before = tree(outside)
            watched = [outside, *([outside / "secret"] if (outside / "secret").is_dir() else [])]
            with opened_below(*watched) as seen:
                wrong = everything(target)
            # That a directory is there may be seen, and a blob, whose bytes are what its name says; no text.
            seen[:] = [name for name in seen if kind.endswith(("json", "jsonl", "md", "db")) or name.startswith("hist")]
            if seen or wrong or tree(outside) != before:
                followed[kind] = (seen, wrong)
    assert not followed, "\n".join(f"{kind}: {what}" for kind, what in followed.items())


COMMANDS = """
import sys
from fusefs.cli.entry import main
for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit:
        pass
"""


def in_a_child(target: Target) -> list[str]:
    """What reads and repairs, in a process that may wait for ever: it is given half a minute."""
    commands = ("cat demo/trip", "search message", "gc --retention 0", "fsck --repair")
    words = [f"--store {target.url} {each}" for each in commands]
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, *words], cwd=REPOSITORY, capture_output=True, check=False, timeout=30
        )
    except subprocess.TimeoutExpired as error:
        return [f"waits for ever: {(error.stderr or b'').decode()}"]
    return [line for line in done.stderr.decode().splitlines() if "Traceback" in line or "internal error" in line]


def test_no_pipe_in_a_store_is_waited_for(target: Target, kinds: dict[str, Path]) -> None:
    waited = {}
    for kind, where in kinds.items():
        if (target.root / "template" / where).is_dir():
            continue
        with copied(target):
            (target.store / where).unlink()
            os.mkfifo(target.store / where)
            wrong = in_a_child(target)
        if wrong:
            waited[kind] = wrong
    assert not waited, "\n".join(f"{kind}: {what}" for kind, what in waited.items())


class Swapping(durability.System):
    """When the first file is removed, what else there is to be removed becomes a link."""

    def __init__(self, doomed: Path, outside: Path) -> None:
        self.doomed, self.outside = doomed, outside
        self.swapped = False

    def unlink(self, label: str, path: str | bytes | Path) -> None:
        super().unlink(label, path)
        self.swap(os.fsdecode(path))

    def unlink_in(self, label: str, directory: int, path: str) -> None:
        super().unlink_in(label, directory, path)
        self.swap(path)

    def swap(self, path: str) -> None:
        if not self.swapped:
            self.swapped = True
            (other,) = {"one", "two"} - {Path(path).parent.name}
            (self.doomed / other).rename(self.doomed / "aside")
            (self.doomed / other).symlink_to(self.outside)


def test_a_link_that_comes_while_a_tree_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed, outside = tmp_path / "doomed", tmp_path / "outside"
    for directory in (doomed / "one", doomed / "two", outside):
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(b"")
    monkeypatch.setattr(durability, "system", Swapping(doomed, outside))
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        durability.remove_tree("test", doomed)
    assert (outside / "file").exists()


def test_gc_removes_nothing_that_a_link_leads_to(target: Target) -> None:
    chat = target.chat()
    outside = target.root / "outside"
    for name in ("snapshots/.1.json.0123456789abcdef.tmp", "scratch/.history.md.swp", ".x.0123456789abcdef.tmp"):
        path = outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"somebody's")
        os.utime(path, (0, 0))
    before = tree(outside)
    chat.rename(target.root / "moved")
    chat.symlink_to(outside)
    (target.store / "drafts").rename(target.root / "drafts")
    sweep = FileSweep(target.store, 0, dry_run=False)
    sweep.run()
    assert tree(outside) == before
    chat.unlink()
    (target.root / "moved").rename(chat)
    for name in ("snapshots", "scratch"):
        place = chat / name
        if place.exists():
            place.rename(target.root / name)
        place.symlink_to(outside / name)
    FileSweep(target.store, 0, dry_run=False).run()
    assert tree(outside) == before
