"""Links that another process puts in the place of what is being read, over and over: nothing is read through them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from store.importers import claude_code
from tests.attacks.conftest import Target, tree
from tests.support import jp

SECRET = "the-secret-of-somebody-else"

SWAPPER = """
import ctypes, os, sys
place, other = map(os.fsencode, sys.argv[1:])
libc = ctypes.CDLL(None)
print("ready", flush=True)
while True:
    libc.renameat2(-100, place, -100, other, 2)  # RENAME_EXCHANGE
"""


@contextmanager
def swapped(place: Path, other: Path) -> Iterator[None]:
    """Another process has `place` be a link to `other`, for a moment, and for another moment itself."""
    link = place.with_name(f".{place.name}.swap")
    link.symlink_to(other)
    command = [sys.executable, "-c", SWAPPER, str(place), str(link)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()
            process.wait(30)
    if place.is_symlink():
        place.unlink()
        with contextlib.suppress(FileNotFoundError):  # a chat's directory may have been given a name of its own
            link.rename(place)


def session(text: str) -> bytes:
    """A session of Claude Code."""
    record = {"type": "user", "sessionId": "s", "timestamp": "2026-01-01T00:00:00Z"}
    message = {"role": "user", "content": text}
    return b"".join(orjson.dumps(record | {"uuid": str(n), "message": message}) + b"\n" for n in range(50))


def claude(root: Path, text: str) -> Path:
    (root / "p").mkdir(parents=True)
    (root / "p/session.jsonl").write_bytes(session(text))
    return root


def jp_project(root: Path, text: str) -> Path:
    jp.write(root, [jp.request(number, text) for number in range(50)])
    return root


Swap = tuple[str, Callable[[Path, str], Path], str]
SWAPS: list[Swap] = [
    ("claude-code", claude, "p/session.jsonl"),
    ("claude-code", claude, "p"),
    ("jp", jp_project, f".jp/conversations/{jp.ID}-plan-a-trip/events.json"),
    ("jp", jp_project, f".jp/conversations/{jp.ID}-plan-a-trip"),
    ("jp", jp_project, ".jp/conversations"),
    ("jp", jp_project, ".jp"),
]


@pytest.mark.parametrize(("source", "make", "place"), SWAPS, ids=[f"{swap[0]} {swap[2][-12:]}" for swap in SWAPS])
def test_what_is_imported_is_swapped(
    target: Target, source: str, make: Callable[[Path, str], Path], place: str
) -> None:
    theirs, mine = make(target.root / "theirs", "harmless"), make(target.root / "mine", SECRET)
    before = tree(mine)
    with swapped(theirs / place, mine / place):
        for _ in range(25):
            _, _, err = target.run("import", source, theirs, "--workspace", "demo")
            assert "Traceback" not in err
            assert "internal error" not in err
    assert [
        path for path, text in tree(target.store).items() if isinstance(text, bytes) and SECRET.encode() in text
    ] == []
    assert tree(mine) == before


def test_a_session_that_is_swapped_between_its_two_readings(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, mine = claude(target.root / "theirs", "harmless"), claude(target.root / "mine", SECRET)
    survey = claude_code._survey

    def then_swapped(fd: int) -> Any:
        found = survey(fd)
        place = theirs / "p/session.jsonl"
        place.unlink()
        place.symlink_to(mine / "p/session.jsonl")
        return found

    monkeypatch.setattr(claude_code, "_survey", then_swapped)
    code, _, err = target.run("import", "claude-code", theirs, "--workspace", "demo")
    assert (code, "was replaced while it was read" in err) == (1, True)
    assert [
        path for path, text in tree(target.store).items() if isinstance(text, bytes) and SECRET.encode() in text
    ] == []


def test_links_and_pipes_among_sessions(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    theirs, mine = claude(target.root / "theirs", "harmless"), claude(target.root / "mine", SECRET)
    (theirs / "p/link.jsonl").symlink_to(mine / "p/session.jsonl")
    (theirs / "link").symlink_to(mine / "p")
    os.mkfifo(theirs / "p/pipe.jsonl")
    code, out, _ = target.run("import", "claude-code", theirs, "--workspace", "demo")
    assert (code, out.count("demo/")) == (0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"{theirs}/p/link.jsonl is a symbolic link, which isn't followed"
    ]
    (target.root / ".claude").mkdir()
    (target.root / ".claude/projects").symlink_to(mine)
    code, _, err = target.run("import", "claude-code", target.root / ".claude", "--workspace", "demo")
    assert (code, f"isn't followed: name {mine} itself" in err) == (1, True)
    assert target.run("import", "claude-code", target.root / ".claude/projects", "--workspace", "demo")[0] == 0


READING = (("cat", "demo/trip"), ("search", "message"), ("export", "--jsonl", "demo", "--output", "-"), ("fsck",))
REMOVING = (("gc", "--retention", "0"),)
REPAIRING = (("fsck", "--repair"), ("cat", "demo/trip"))


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        *((name, READING + REMOVING + REPAIRING) for name in ("history.jsonl", "history.md", "snapshots", "scratch")),
        (".", REMOVING),
    ],
)
def test_a_store_is_swapped(target: Target, name: str, commands: tuple[tuple[str, ...], ...]) -> None:
    """While it is read, searched, exported, checked, repaired and collected."""
    chat = target.chat()
    (chat / "scratch").mkdir(exist_ok=True)
    outside = target.root / "outside"
    place, other = (chat, outside) if name == "." else (chat / name, outside / name)
    if place.is_dir():
        other.mkdir(parents=True)
        for each in ("x.tmp", "history.jsonl", "history.md", ".x.0123456789abcdef.tmp", "20.json"):
            (other / each).write_bytes(SECRET.encode())
            os.utime(other / each, (0, 0))
    else:
        outside.mkdir()
        other.write_bytes(SECRET.encode())
    before = tree(outside)
    printed = ""
    with swapped(place, other):
        for words in commands * 3:
            _, out, err = target.run(*words)
            assert "Traceback" not in err
            assert "internal error" not in err
            printed += out
    assert tree(outside) == before
    assert SECRET not in printed
    with contextlib.suppress(FileNotFoundError):
        assert SECRET not in (chat / "history.md").read_text()


@pytest.mark.parametrize("place", [".chatfs/chats", ".chatfs/chats/CHAT", ".chatfs/chats/CHAT/history.jsonl"])
def test_a_project_is_swapped(target: Target, place: str) -> None:
    """While its chats are written and taken in: neither is anything read where a link leads, nor written."""
    theirs, mine = target.root / "theirs", target.root / "mine"
    theirs.mkdir()
    line = target.root / "line"
    line.write_bytes(b'{"role":"user","content":"harmless"}\n')
    target.run("workspace", "create", "demo", "--project", theirs)
    target.run("append", "demo/trip", line, "--create")
    target.run("project", "sync", theirs)
    (chat,) = (theirs / ".chatfs/chats").glob("*/history.jsonl")
    place = place.replace("CHAT", chat.parent.name)
    shutil.copytree(theirs, mine)
    for path in mine.rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes().replace(b"harmless", SECRET.encode()))
    before = tree(mine)
    with swapped(theirs / place, mine / place):
        for _ in range(5):
            target.run("append", "demo/trip", line)
            _, _, err = target.run("project", "sync", theirs, "--import")
            assert "Traceback" not in err
            assert "internal error" not in err
    assert tree(mine) == before
    found = [path for path, text in tree(target.store).items() if isinstance(text, bytes) and SECRET.encode() in text]
    assert found == []


@pytest.mark.parametrize("place", [".jp", ".jp/conversations", ".jp/locks"])
def test_a_project_of_jp_is_swapped(target: Target, place: str) -> None:
    """While conversations are written to it: nothing is written where a link leads."""
    project, outside = target.root / "project", target.root / "outside"
    for each, text in ((project, "harmless"), (outside, SECRET)):
        jp_project(each, text)
        (each / ".jp/locks").mkdir()
    line = target.root / "line"
    line.write_bytes(b'{"role":"user","content":"more"}\n')
    target.run("import", "jp", project, "--workspace", "demo")
    before = tree(outside)
    with swapped(project / place, outside / place):
        for _ in range(12):
            code, _, err = target.run("append", "demo/Plan-a-trip", line)
            assert code == 0, err
            _, _, err = target.run("export", "jp", "demo", project)
            assert "Traceback" not in err
            assert "internal error" not in err
    assert tree(outside) == before
