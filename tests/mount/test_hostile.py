"""Input that means harm, through the mount and the command line: refused or kept as it is, and nothing else suffers."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from store import events as ev
from store.chat import Chat as StoreChat
from store.library import Store
from store.model import LINE_MAX, ChatId, NewEntry, WorkspaceId, uuid7, workspace_space
from store.workspace import Workspace as StoreWorkspace
from tests.support import ops, torture
from tests.support.mounts import Chat, Mounted, Workspace, message
from tests.support.ops import append, refused
from tests.support.watching import Watcher

pytestmark = pytest.mark.mount

DEEP = 100_000

REFUSED_NAMES = {
    "a control character": b"a\x01b",
    "a newline": b"a\nb",
    "a carriage return": b"a\rb",
    "a terminal's escape": b"\x1b]0;owned\x07",
    "delete": b"a\x7f",
    "a control character of the second set": "a\u009b31mb".encode(),
    "a line separator": "a\u2028b".encode(),
    "a paragraph separator": "a\u2029b".encode(),
    "not UTF-8": b"a\xff\xfe",
    "half of a surrogate pair": b"\xed\xa0\x80",
    "too long in UTF-8": b"\xc0\xaf",
}
ACCEPTED_NAMES = {
    "right to left": "abc\u202etxt.exe",
    "255 bytes": "n" * 255,
    "255 bytes of four": "\U0001f600" * 63 + "abc",
    "a shell's words": "$(reboot); `rm -rf ~`; '\"",
    "an option": "--help",
    "combining marks": "e\u0301" * 20,
    "a backslash": "a\\..\\..\\x",
    "Markdown": "](javascript:alert(1)) ## user",
    "percent": "%2e%2e%2f%n%s",
}


def alive(mounted: Mounted, chat: Chat) -> None:
    """The mount still does its work."""
    append(chat.jsonl, message("still here"))
    assert b"still here" in chat.md.read_bytes()
    assert mounted.process is not None
    assert mounted.process.poll() is None


# ---- names


@pytest.mark.parametrize("name", REFUSED_NAMES.values(), ids=REFUSED_NAMES.keys())
def test_names_that_are_refused(shared_mount: Mounted, workspace: Workspace, chat: Chat, name: bytes) -> None:
    chats, attachments = os.fsencode(chat.directory.parent), os.fsencode(chat.attachments)
    before = chat.log(), workspace.events()
    refusals: list[Callable[[], object]] = [
        lambda: os.mkdir(os.path.join(os.fsencode(shared_mount.mountpoint), name)),
        lambda: os.mkdir(os.path.join(chats, name)),
        lambda: os.rename(os.fsencode(chat.directory), os.path.join(chats, name)),
        lambda: os.rename(os.fsencode(workspace.directory), os.path.join(os.fsencode(shared_mount.mountpoint), name)),
        lambda: os.close(os.open(os.path.join(attachments, name), os.O_WRONLY | os.O_CREAT)),
    ]
    for refusal in refusals:
        with refused(errno.EINVAL):
            refusal()
    assert (chat.log(), workspace.events()) == before
    assert os.listdir(attachments) == []
    alive(shared_mount, chat)


@pytest.mark.parametrize("name", REFUSED_NAMES.values(), ids=REFUSED_NAMES.keys())
def test_names_that_a_scratch_file_keeps(chat: Chat, name: bytes) -> None:
    """What an editor calls its files is the editor's business; it can't become anything else's name."""
    path = os.path.join(os.fsencode(chat.directory), name)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.close(descriptor)
    assert name in os.listdir(os.fsencode(chat.directory))
    with refused(errno.EINVAL):
        os.rename(path, os.path.join(os.fsencode(chat.attachments), name))
    os.unlink(path)


@pytest.mark.parametrize("name", ACCEPTED_NAMES.values(), ids=ACCEPTED_NAMES.keys())
def test_names_that_are_kept(shared_mount: Mounted, chat: Chat, name: str) -> None:
    (chat.attachments / name).write_bytes(b"content")
    assert os.listdir(chat.attachments) == [name]
    chat.directory.with_name(name).mkdir()
    assert name in os.listdir(chat.directory.parent)
    assert (chat.attachments / name).read_bytes() == b"content"
    listed = json.loads(shared_mount.cli("chat", "ls", chat.directory.parents[1].name, "--json").stdout)
    assert name in [each["name"] for each in listed]
    alive(shared_mount, chat)


def test_names_of_more_than_255_bytes(shared_mount: Mounted, chat: Chat) -> None:
    for name in ("n" * 256, "\U0001f600" * 64):
        for path in (chat.attachments / name, chat.directory / name):
            with refused(errno.ENAMETOOLONG):
                path.write_bytes(b"")
        with refused(errno.ENAMETOOLONG):
            chat.directory.with_name(name).mkdir()
        with refused(errno.ENAMETOOLONG):
            chat.directory.rename(chat.directory.with_name(name))
    alive(shared_mount, chat)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("chat new", b".."),
        ("chat new", b"\x1b]0;owned\x07"),
        ("chat new", b"../../x"),
        ("chat rename", b""),
        ("chat rename", b"a\xff\xfe"),
        ("chat rename", "a\u009b31mb".encode()),
        ("workspace create", b"."),
        ("workspace create", b"a\nb"),
        ("workspace create", b"n" * 256),
    ],
)
def test_names_that_the_command_line_refuses(shared_mount: Mounted, chat: Chat, command: str, name: bytes) -> None:
    workspace = os.fsencode(chat.directory.parents[1].name)
    given = {"chat new": [workspace + b"/" + name], "chat rename": [workspace + b"/trip", name]}.get(command, [name])
    for words in [[*map(str.encode, command.split()), *given]]:
        done = shared_mount.cli(*map(os.fsdecode, words), check=False)
        assert done.returncode in {1, 2}, words
        lines = done.stderr.decode().splitlines()
        assert lines, words
        assert done.returncode == 2 or len(lines) == 1, lines
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|Traceback", done.stderr.decode())
    alive(shared_mount, chat)


# ---- many, and large


def test_a_directory_of_very_many_attachments(shared_mount: Mounted, chat: Chat) -> None:
    count = torture.either(5_000, 100_000)
    names = [f"file {number:06d}" for number in range(count)]

    async def attach(_: StoreWorkspace, found: StoreChat) -> None:
        put = await found.attach("first", b"content", "test")
        for start in range(0, count, 10_000):
            events = [
                {"type": "attachment.put", "id": f"id-{name}", "name": name, "digest": put.digest, "size": put.size}
                | {"content_type": "text/plain"}
                for name in names[start : start + 10_000]
            ]
            await found.append_events(events, "test")
        await found.remove_attachment("first", "test")

    ops.with_chat(shared_mount, chat.directory.parents[1].name, "trip", attach)
    assert sorted(os.listdir(chat.attachments)) == names
    assert sum(entry.stat().st_size for entry in os.scandir(chat.attachments)) == count * len(b"content")
    assert (chat.attachments / names[-1]).read_bytes() == b"content"
    (chat.attachments / names[count // 2]).unlink()
    assert len(os.listdir(chat.attachments)) == count - 1
    alive(shared_mount, chat)


def test_a_workspace_of_very_many_chats(shared_mount: Mounted, chat: Chat) -> None:
    count = torture.either(3_000, 100_000)
    made = [f"chat {number:06d}" for number in range(count)]

    async def create(workspace: StoreWorkspace, _: StoreChat) -> None:
        for start in range(0, count, 10_000):
            batch = [
                NewEntry(ev.ChatCreated(ChatId(uuid7()), name).encode(), "test")
                for name in made[start : start + 10_000]
            ]
            await workspace.append_lines(batch)

    ops.with_chat(shared_mount, chat.directory.parents[1].name, "trip", create)
    chats = chat.directory.parent
    assert sorted(os.listdir(chats)) == sorted([*made, "trip"])
    append(chats / made[-1] / "history.jsonl", message("in the last"))
    assert b"in the last" in (chats / made[-1] / "history.md").read_bytes()
    (chats / made[0]).rename(chats / "moved")
    assert sorted(os.listdir(chats)) == sorted([*made[1:], "trip", "moved"])
    alive(shared_mount, chat)


def resident(mounted: Mounted) -> int:
    """The most memory that the daemon ever had, in bytes."""
    assert mounted.process is not None
    status = Path(f"/proc/{mounted.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+([0-9]+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.timeout(600 if torture.LONG else 60)
def test_a_huge_attachment_in_constant_memory(mounted: Mounted, tmp_path: Path) -> None:
    chat = mounted.workspace().chat()
    size = torture.either(100, 1024) << 20
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 37 << 20):
            file.seek(offset)
            file.write(b"%d" % offset)
    before = resident(mounted)
    subprocess.run(["cp", source, chat.attachments / "huge"], check=True)
    assert (chat.attachments / "huge").stat().st_size == size
    assert filecmp.cmp(source, chat.attachments / "huge", shallow=False)
    assert resident(mounted) - before < 64 << 20
    # Equal chunks are kept once.
    kept = sum(path.stat().st_blocks * 512 for path in (mounted.store / "objects").rglob("*.chunk"))
    assert kept < size // 4
    alive(mounted, chat)


@pytest.mark.parametrize("over", [0, 1])
def test_the_longest_line_and_one_byte_more(shared_mount: Mounted, chat: Chat, over: int) -> None:
    frame = len(message("", type="message.appended", id="long"))
    line = message("x" * (LINE_MAX + over - frame + 1), type="message.appended", id="long")
    assert len(line) == LINE_MAX + over + 1
    before = len(chat.log())
    try:
        with ops.opened(chat.jsonl, os.O_WRONLY | os.O_APPEND) as descriptor:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        if not over or error.errno != errno.EFBIG:
            raise
    assert len(chat.log()) == before + (not over)
    done = shared_mount.cli("append", f"{chat.directory.parents[1].name}/trip", given=message("a") + line, check=False)
    assert done.returncode == over
    if over:
        assert b"line 2" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert len(chat.log()) == before + (0 if over else 3)
    alive(shared_mount, chat)


# ---- JSON that nests too deep

DEEP_VALUES = {
    "arrays": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "never closed": b"[" * DEEP,
    "in a message": b'{"role":"user","content":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "in an envelope": b'{"seq":1,"ts":1,"actor":"a","data":' + b"[" * DEEP + b"]" * DEEP + b',"crc":"00000000"}',
    "in a title": b'{"title":' + b"[" * DEEP + b"]" * DEEP + b"}",
}


@pytest.mark.parametrize("value", DEEP_VALUES.values(), ids=DEEP_VALUES.keys())
def test_deep_json_is_refused(shared_mount: Mounted, chat: Chat, value: bytes) -> None:
    before = chat.log()
    workspace = chat.directory.parents[1]
    for path in (chat.jsonl, workspace / "history.jsonl"):
        with refused(errno.EINVAL):
            append(path, value + b"\n")
    for path in (chat.directory / "chat.json", workspace / "workspace.json"):
        shown = json.loads(path.read_bytes())
        with refused(errno.EINVAL):
            path.write_bytes(value)
        # What was refused is kept beside it, and counts.
        assert json.loads(path.read_bytes()) | {"usage_bytes": 0} == shown | {"usage_bytes": 0}
    done = shared_mount.cli("append", f"{workspace.name}/trip", given=value + b"\n", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert chat.log() == before
    alive(shared_mount, chat)


@pytest.mark.parametrize("form", ["messages", "claude-code"])
def test_deep_json_in_a_file_to_import(shared_mount: Mounted, chat: Chat, tmp_path: Path, form: str) -> None:
    """Each line is kept as a text, and named."""
    source = tmp_path / "import.jsonl"
    source.write_bytes(b"".join(value + b"\n" for value in DEEP_VALUES.values()))
    done = shared_mount.cli("import", form, source, "--workspace", chat.directory.parents[1].name, check=False)
    assert done.returncode in {0, 1}
    assert all(re.search(rb"line [0-9]+: not JSON", line) for line in done.stderr.splitlines())
    alive(shared_mount, chat)


# ---- repetition

PIECES = {
    "headings": b"## user\n",
    "headings with text": b"## user\n\n#\n\n",
    "fences": b"```\n~~~~\n",
    "longer and longer fences": b"",
    "backslashes": b"\\## user\n\\\\## user\n",
    "links": b"[a](attachments/a)![",
    "backquotes": b"`",
    "dots": "## user · · ·\n".encode(),
    "NUL": b"\0",
}


@pytest.mark.timeout(1800 if torture.LONG else 60)
@pytest.mark.parametrize("kind", PIECES)
def test_a_text_of_repetitions(shared_mount: Mounted, chat: Chat, kind: str) -> None:
    count = torture.either(10_000, 1_000_000)
    piece = PIECES[kind]
    # What is one message must fit in one line of the log, where escaping makes it longer.
    text = piece * (count if piece.startswith(b"## user\n") else min(count, LINE_MAX // 4 // (len(piece) or 1)))
    if not text:
        text = b"".join(b"`" * number + b"\n" for number in range(3, int((2 * count) ** 0.5)))
    chat.md.write_bytes(text)
    assert chat.md.read_bytes() == text
    half = len(text) // 2
    changed = text[:half] + b"\nchanged\n" + text[half:]
    chat.md.write_bytes(changed)
    assert chat.md.read_bytes() == changed
    append(chat.md, text[:1000])
    assert chat.md.read_bytes() == changed + text[:1000]
    alive(shared_mount, chat)


def test_a_message_too_long_for_a_line_of_the_log(shared_mount: Mounted, chat: Chat) -> None:
    """Refused, nothing of it half done, and what was typed is kept."""
    before = chat.log(), chat.md.read_bytes()
    text = before[1] + b"\n## user\n\nshort\n\n## assistant\n\n" + b"x" * LINE_MAX + b"\n"
    with refused(errno.EFBIG):
        chat.md.write_bytes(text)
    with refused(errno.EFBIG):
        append(chat.md, text[len(before[1]) :])
    assert (chat.log(), chat.md.read_bytes()) == before
    kept = sorted(chat.directory.glob("history.md.rejected-*"))
    assert [path.read_bytes() for path in kept] == [text, text[len(before[1]) :]]
    alive(shared_mount, chat)


@pytest.mark.parametrize("name", ["../escaped", "a/b", "..", ".hidden", "a\nb"])
def test_a_workspace_whose_log_gives_it_no_name_goes_by_its_id(mounted: Mounted, name: str) -> None:
    """Neither the others are hidden by it, nor is anything touched outside of the mount."""
    new = WorkspaceId(uuid7())

    async def make(store: Store) -> None:
        space = await store.driver.open_log(workspace_space(new), create=True)
        await space.append([NewEntry(ev.WorkspaceCreated(new, name).encode(), "elsewhere")])
        await space.aclose()

    with Watcher(mounted.mountpoint) as watcher:
        mounted.workspace("ok")
        ops.elsewhere(mounted, make)
        watcher.expect(f"CREATE {new}")
    assert sorted(os.listdir(mounted.mountpoint)) == sorted([new, "ok"])
    assert not (mounted.root / "escaped").exists()
    (mounted.mountpoint / new).rename(mounted.mountpoint / "named")
    assert sorted(os.listdir(mounted.mountpoint)) == ["named", "ok"]
