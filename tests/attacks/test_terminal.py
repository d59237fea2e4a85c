"""Text that a terminal would obey, in all that can hold text: what each command shows of it, and complains of, is text.

Everything is shown on a real terminal, as to a person. What chatfs itself says to a terminal (colours, the progress
line) is taken out first; the text's own escape sequences are of other kinds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import trio

from fusefs.cli.entry import build, main
from fusefs.cli.parser import Parser
from fusefs.cli.stores import absolute_url
from fusefs.unmount import lazy_unmount, mounts
from store.driver import Access
from store.library import Store, open_store
from store.model import NewEntry
from tests.attacks.conftest import Target
from tests.support import jp
from tests.support.mounts import message

TURNED = "\u202egnp.\u2066\u200f\u061c"
"""No control characters, so that a name may have it."""
OBEYED = f"\x1b[2J\x1b]52;c;aGk=\x07\x1bP+q\x1b\\\x9b6n\x9d0;t\x9c\x85\x08\x7f\rover\nINJECTED {TURNED}\u2028x"
FILE = OBEYED.replace("/", "")
WORD = FILE + "\udcff"
"""Not UTF-8, either."""
OWN = re.compile(r"\x1b\[(?:[0-9]*m|K)|\r(?=\n)|\r(?=[a-z]{3,}:? |\x1b\[K)")
"""What chatfs says to a terminal; and the line ends that a terminal makes."""
COMMANDS = "[\x00-\x08\x0b-\x1f\x7f-\x9f]"
TURNING = "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f\u2028\u2029]"
TEXT = {"cat", "log"}
"""They show what was written, in its lines and directions."""


def wrong_in(said: str, command: str) -> re.Match[str] | None:
    pattern = COMMANDS if command in TEXT else f"{COMMANDS}|{TURNING}|^INJECTED"
    return re.search(pattern, OWN.sub("", OWN.sub("", said)), re.MULTILINE)


class Terminal:
    """A terminal in the place of stdout and stderr."""

    def __init__(self) -> None:
        self._ours, self._theirs = os.openpty()
        self._said = bytearray()
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # its end
            while piece := os.read(self._ours, 65536):
                self._said += piece

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        self._reader.start()
        saved = [os.dup(fd) for fd in (1, 2)]
        streams = sys.stdout, sys.stderr
        try:
            for fd in (1, 2):
                os.dup2(self._theirs, fd)
            sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115 - the descriptors stay
            yield
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            sys.stdout, sys.stderr = streams
            for fd, before in zip((1, 2), saved, strict=True):
                os.dup2(before, fd)
                os.close(before)
            os.close(self._theirs)
            self._reader.join(10)
            os.close(self._ours)

    @property
    def said(self) -> str:
        return bytes(self._said).decode(errors="surrogateescape")


def on_terminal(*words: str | Path) -> tuple[int, str]:
    """A command's exit code, and what it shows."""
    terminal = Terminal()
    with terminal.shown():
        try:
            code = main([str(word) for word in words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    return code, terminal.said


def commands(parser: Parser, *words: str) -> Iterator[tuple[str, Parser]]:
    """All there are."""
    below = [action for action in parser.declared()._actions if isinstance(action, argparse._SubParsersAction)]
    if not below or words[-1:] == ("import",):
        yield " ".join(words), parser
    for action in below:
        for word, found in action.choices.items():
            yield from commands(found, *words, word)


@pytest.fixture
def hostile(target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """A store, and files to import, attach, mount and so on, whose names and contents are all hostile."""
    home = tmp_path / FILE
    home.mkdir()
    monkeypatch.setenv("CHATFS_STORE", str(home / FILE))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    for name in ("attached", "mount", "project", "empty"):
        (home / name).mkdir()
    files = {name: home / f"{name}{FILE}" for name in ("messages", "bad", "attached", "session", "stream", "export")}
    files["messages"].write_bytes(message(OBEYED, model=OBEYED, title=OBEYED) + message(OBEYED, "assistant"))
    files["bad"].write_bytes(b'{"role": "\x1b[2J')
    files["attached"].write_bytes(OBEYED.encode())
    files["stream"].write_bytes(orjson.dumps({"chatfs": OBEYED, OBEYED: 1}) + b"\n")
    session = {"type": "user", "uuid": "1", "sessionId": OBEYED, "timestamp": "2026-01-01T00:00:00Z", "cwd": OBEYED}
    said = {"role": "user", "content": OBEYED, "model": OBEYED}
    files["session"] = files["session"].with_name(f"{FILE}.jsonl")
    files["session"].write_bytes(
        orjson.dumps(session | {"message": said})
        + b"\n"
        + orjson.dumps({"type": "summary", "summary": OBEYED})
        + b"\n{"
    )
    events = [jp.request(0, OBEYED), jp.answer(1, OBEYED), {"timestamp": OBEYED, "type": OBEYED}]
    jp.write(home / "empty", events, slug=f"-{TURNED}", metadata={"title": OBEYED})
    jp.write(home / "empty", b"{", conversation=jp.ID + 1, slug="-\x1b[2J")
    files |= {name: home / name for name in ("mount", "project", "empty")}
    yield files
    for each in mounts():
        if each.mountpoint.is_relative_to(tmp_path):
            lazy_unmount(each.mountpoint)


async def fill(path: str) -> None:
    """Chats, events and actors that no command would make."""
    async with open_store(absolute_url(path), access=Access.MAKE) as store:
        await _fill(store)


async def _fill(store: Store) -> None:
    workspace = await store.create_workspace(f"w{TURNED}", OBEYED)
    chat = await workspace.create_chat(f"c{TURNED}", OBEYED)
    await chat.append_lines([message(OBEYED, role, model=OBEYED) for role in ("user", "assistant", OBEYED)], OBEYED)
    await chat.append_lines([b'{"type":%s}' % orjson.dumps(OBEYED)], OBEYED)
    await chat.change(OBEYED, title=f"t{TURNED}", labels=[f"l{TURNED}"])
    await chat.attach(f"a{TURNED}", OBEYED.encode(), OBEYED)
    names = orjson.dumps({"type": "chat.created", "chat": "01a20003-327b-77ec-add0-0a7e791d1a2e", "name": OBEYED})
    title = orjson.dumps({"type": "workspace.changed", "title": OBEYED, "labels": [OBEYED]})
    await workspace.append_lines([NewEntry(names, OBEYED), NewEntry(title, OBEYED)])
    await workspace.space.sync()
    await chat.sync()


def test_no_command_shows_what_a_terminal_obeys(target: Target, hostile: dict[str, Path]) -> None:
    store = Path(os.environ["CHATFS_STORE"])
    trio.run(fill, str(store))
    w, c = f"w{TURNED}", f"w{TURNED}/c{TURNED}"
    x = f"{WORD}/{WORD}"
    given = hostile
    table: list[tuple[int, tuple[str | Path, ...]]] = [
        (0, ("workspace", "create", f"v{TURNED}", "--project", given["project"])),
        (1, ("workspace", "create", OBEYED)),
        (0, ("workspace", "ls")),
        (0, ("workspace", "show", w)),
        (0, ("workspace", "quota", w, "1G")),
        (2, ("workspace", "quota", w, OBEYED)),
        (0, ("workspace", "rename", w, w + "2")),
        (0, ("workspace", "rename", w + "2", w)),
        (1, ("workspace", "rename", w, OBEYED)),
        (1, ("workspace", "rm", w)),
        (0, ("project", "init", given["project"], "--workspace", f"v{TURNED}")),
        (0, ("project", "sync", given["project"])),
        (0, ("project", "status", given["project"])),
        (0, ("chat", "new", f"{c}2")),
        (0, ("chat", "ls", w)),
        (0, ("chat", "ls", w, "--long", "--all")),
        (0, ("chat", "show", c)),
        (0, ("chat", "rename", f"{c}2", f"c{TURNED}3")),
        (1, ("chat", "rename", c, OBEYED)),
        (0, ("chat", "archive", c)),
        (0, ("chat", "unarchive", c)),
        (0, ("chat", "local", c)),
        (0, ("chat", "project", c)),
        (0, ("chat", "rm", f"{c}3")),
        (0, ("chat", "restore", f"{c}3")),
        (1, ("chat", "restore", c)),
        (0, ("append", c, given["messages"])),
        (1, ("append", c, given["bad"])),
        (0, ("log", c)),
        (0, ("log", w)),
        (0, ("cat", c)),
        (0, ("attach", c, __file__)),
        (1, ("attach", c, given["attached"])),
        (0, ("import", "messages", given["messages"], "--workspace", w)),
        (0, ("import", "messages", given["bad"], "--workspace", w)),
        (0, ("import", "claude-code", given["session"], "--workspace", w)),
        (1, ("import", "jp", given["empty"], "--workspace", w)),
        (1, ("import", "--jsonl", given["stream"])),
        (0, ("migrate", store, store.with_name("other\x1b[2J"))),
        (0, ("export", c, "--jsonl", "-o", given["export"])),
        (0, ("import", "--jsonl", given["export"])),
        (0, ("export", "jp", w, given["project"])),
        (0, ("compact", c, "--keep", "1")),
        (0, ("search", "over")),
        (1, ("search", OBEYED, "nothing")),
        (0, ("fsck", "--full")),
        (0, ("gc", "--retention", "0")),
        (0, ("mount", given["mount"])),
        (0, ("status",)),
        (0, ("umount", given["mount"])),
        (0, ("sandbox", "run", c, "--runtime", "none", "--", "true")),
        (1, ("sandbox", "run", c, "--runtime", "none", "--", OBEYED)),
        (0, ("sandbox", "ls")),
        (1, ("sandbox", "stop", c)),
        (1, ("chat", "show", x, "--debug")),
    ]
    parsers = dict(commands(build()))
    used = {name for name in parsers for _, words in table if list(words[: len(name.split())]) == name.split()}
    assert used == set(parsers), "a command isn't tried out"
    wrong = {}
    for expected, words in table:
        again = [[*words, "--json"]] if words[-1] in {"ls", w, "status"} else []
        for each in [list(words), *again]:
            code, said = on_terminal(*each)
            if (found := wrong_in(said, str(words[0]))) or (each not in again and code != expected):
                wrong[" ".join(map(str, each))] = (code, said, found)
    for name in parsers:
        code, said = on_terminal(*name.split(), x, x, f"--{OBEYED}")
        if (found := wrong_in(said, "")) or code == 0:
            wrong[f"{name} with wrong words"] = (code, said, found)
    assert not wrong, "\n\n".join(f"{words!r}: {what}" for words, what in wrong.items())


def test_names_of_directories_that_are_not_utf8(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an old archive leaves them: all works, but for a project, whose place has to be written down."""
    home = Path(os.fsdecode(os.fsencode(target.root) + b"/h\xff"))
    for name in ("mount", "project"):
        (home / name).mkdir(parents=True)
    monkeypatch.setenv("CHATFS_STORE", str(home / "store"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    (home / "message").write_bytes(message("hello"))
    for words in (
        ("workspace", "create", "demo"),
        ("import", "messages", home / "message", "--workspace", "demo"),
        ("search", "hello"),
        ("fsck",),
        ("mount", home / "mount"),
        ("status",),
        ("umount", home / "mount"),
        ("migrate", home / "store", home / "other"),
    ):
        code, said = on_terminal(*words)
        assert (code, "chatfs: " in said.replace("chatfs: made a new store", "")) == (0, False), said
    code, said = on_terminal("project", "init", home / "project", "--workspace", "demo")
    assert (code, said.count("isn't UTF-8")) == (1, 1), said
    code, said = on_terminal("search", "nowhere\udcff")
    assert (code, said.count("nothing is found")) == (1, 1), said
