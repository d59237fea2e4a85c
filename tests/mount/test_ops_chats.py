"""Chats and workspaces as directories: made, renamed, archived, trashed, restored, found by id; and copies of them."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from store.library import Store
from tests.support.mounts import Chat, Mounted, Workspace
from tests.support.ops import EXCHANGE, NOREPLACE, elsewhere, opened, refused, renameat2
from tests.support.sandboxed import session_of

pytestmark = pytest.mark.mount

TREE = ["attachments", "chat.json", "history.jsonl", "history.md"]


def kinds(workspace: Workspace) -> list[str]:
    return [event["type"] for event in workspace.events()]


@pytest.fixture
def chats(workspace: Workspace) -> Path:
    return workspace.directory / "chats"


@pytest.fixture
def archive(workspace: Workspace) -> Path:
    return workspace.directory / "archive"


@pytest.fixture
def trash(workspace: Workspace) -> Path:
    return workspace.directory / "trash"


# ---- workspaces


def test_a_new_workspace(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    assert os.listdir(mounted.mountpoint) == ["demo"]
    assert sorted(os.listdir(workspace.directory)) == ["archive", "chats", "history.jsonl", "workspace.json"]
    assert kinds(workspace) == ["workspace.created"]
    assert workspace.events()[0]["user"]
    with refused(errno.EEXIST):
        workspace.directory.mkdir()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b".hidden", errno.EINVAL),
        (b"a\nb", errno.EINVAL),
        (b"\x7f", errno.EINVAL),
        (b"\xff", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
    ],
)
def test_names_that_directories_cannot_have(mounted: Mounted, name: bytes, code: int) -> None:
    workspace = mounted.workspace()
    chat = workspace.chat()
    for parent in (mounted.mountpoint, workspace.directory / "chats"):
        with refused(code):
            os.mkdir(os.fsencode(parent) + b"/" + name)
    with refused(code):
        os.rename(chat.directory, os.fsencode(chat.directory.parent) + b"/" + name)
    with refused(code):
        os.rename(workspace.directory, os.fsencode(mounted.mountpoint) + b"/" + name)
    assert os.listdir(workspace.directory / "chats") == ["trip"]
    assert os.listdir(mounted.mountpoint) == ["demo"]


def test_names_that_directories_can_have(workspace: Workspace, chats: Path) -> None:
    names = ["a b", "日本語", "-rf *", "x" * 255, "ü" * 127, "'\"", "a.b", "~"]
    for name in names:
        (chats / name).mkdir()
        assert sorted(os.listdir(chats / name)) == TREE
    assert os.listdir(chats) == names
    assert [event["name"] for event in workspace.events()[1:]] == names


def test_a_workspace_goes_to_trash_when_it_has_no_chats(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chat = workspace.chat()
    with refused(errno.ENOTEMPTY):
        workspace.directory.rmdir()
    chat.directory.rename(workspace.directory / "archive" / "trip")
    with refused(errno.ENOTEMPTY):
        workspace.directory.rmdir()
    (workspace.directory / "archive" / "trip").rmdir()
    workspace.directory.rmdir()
    assert os.listdir(mounted.mountpoint) == []
    assert not workspace.directory.exists()
    assert kinds(workspace)[-1] == "workspace.trashed"
    workspace.directory.mkdir()
    assert workspace.id.encode() not in (workspace.directory / "workspace.json").read_bytes()
    assert os.listdir(workspace.directory / "chats") == []


def test_rm_r_of_a_workspace(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chat = workspace.chat()
    (chat.attachments / "a").write_bytes(b"a")
    (workspace.directory / "scratch~").write_bytes(b"x")
    subprocess.run(["rm", "-r", workspace.directory], check=True)
    assert os.listdir(mounted.mountpoint) == []
    assert kinds(workspace)[-2:] == ["chat.trashed", "workspace.trashed"]


def test_a_workspace_is_renamed(mounted: Mounted) -> None:
    workspace, other = mounted.workspace(), mounted.workspace("other")
    chat = workspace.chat()
    chat.say("hello")
    moved = mounted.mountpoint / "moved"
    with refused(errno.EEXIST):
        workspace.directory.rename(other.directory)
    with opened(chat.jsonl, os.O_WRONLY | os.O_APPEND) as log:
        workspace.directory.rename(moved)
        os.write(log, b"1\n")
    assert sorted(os.listdir(mounted.mountpoint)) == ["moved", "other"]
    assert not workspace.directory.exists()
    assert (moved / "chats" / "trip" / "history.jsonl").read_bytes() == chat.log_file.read_bytes()
    assert b'"workspace": "moved"' in (moved / "chats" / "trip" / "chat.json").read_bytes()
    mounted.workspace("demo")
    mounted.remount()
    assert sorted(os.listdir(mounted.mountpoint)) == ["demo", "moved", "other"]


def test_files_at_the_top_are_refused(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    for path in (mounted.mountpoint / "file", workspace.directory / "chats" / "file"):
        with refused(errno.EPERM):
            path.write_bytes(b"")
        with refused(errno.EPERM):
            path.symlink_to("x")
    with refused(errno.EPERM):
        (workspace.directory / "directory").mkdir()
    with refused(errno.EISDIR):
        workspace.directory.unlink()


# ---- chats


def test_a_new_chat(workspace: Workspace, chats: Path) -> None:
    chat = workspace.chat()
    assert sorted(os.listdir(chat.directory)) == TREE
    assert (chat.md.read_bytes(), chat.jsonl.read_bytes(), os.listdir(chat.attachments)) == (b"", b"", [])
    assert workspace.events()[-1] == {"type": "chat.created", "chat": chat.id, "name": "trip"}
    assert chat.directory.stat().st_nlink == 3
    assert chats.stat().st_nlink == 3
    with refused(errno.EEXIST):
        chat.directory.mkdir()


def test_a_name_is_taken_in_archive_too(workspace: Workspace, chat: Chat, chats: Path, archive: Path) -> None:
    chat.directory.rename(archive / "trip")
    with refused(errno.EEXIST):
        (chats / "trip").mkdir()
    with refused(errno.EPERM):
        (archive / "new").mkdir()
    with refused(errno.EPERM):
        (workspace.directory / "trash" / "new").mkdir()


def test_a_rename_keeps_everything(workspace: Workspace, chat: Chat, chats: Path) -> None:
    (chat.attachments / "a").write_bytes(b"a")
    inode, text = chat.directory.stat().st_ino, chat.md.read_bytes()
    moved = chats / "journey"
    with chat.md.open("rb") as reader, opened(chat.jsonl, os.O_WRONLY | os.O_APPEND) as log:
        chat.directory.rename(moved)
        assert reader.read() == text
        os.write(log, b"1\n")
    assert os.listdir(chats) == ["journey"]
    assert (moved.stat().st_ino, (moved / "history.md").read_bytes()) == (inode, text)
    assert (moved / "attachments" / "a").read_bytes() == b"a"
    assert workspace.events()[-1] == {"type": "chat.renamed", "chat": chat.id, "name": "journey"}
    assert b'"name": "journey"' in (moved / "chat.json").read_bytes()
    chat.directory.mkdir()
    assert (chat.directory / "history.md").read_bytes() == b""


def test_a_taken_name_is_refused(workspace: Workspace, chat: Chat, chats: Path, archive: Path) -> None:
    other = workspace.chat("other")
    with refused(errno.ENOTEMPTY):
        chat.directory.rename(other.directory)
    with refused(errno.EEXIST):
        renameat2(chat.directory, other.directory, NOREPLACE)
    with refused(errno.EINVAL):
        renameat2(chat.directory, other.directory, EXCHANGE)
    other.directory.rename(archive / "other")
    with refused(errno.EEXIST):
        chat.directory.rename(other.directory)
    with refused(errno.EXDEV):
        chat.directory.rename(workspace.directory / "trip")
    assert os.listdir(chats) == ["trip"]
    assert kinds(workspace)[-1] == "chat.archived"


def test_archived_renamed_and_back(workspace: Workspace, chat: Chat, chats: Path, archive: Path) -> None:
    text = chat.md.read_bytes()
    chat.directory.rename(archive / "journey")
    assert (os.listdir(chats), os.listdir(archive)) == ([], ["journey"])
    assert kinds(workspace)[-2:] == ["chat.renamed", "chat.archived"]
    assert (archive / "journey" / "history.md").read_bytes() == text
    chat_again = workspace.found("journey", "archive")
    chat_again.say("still writable")
    (archive / "journey").rename(chats / "journey")
    assert kinds(workspace)[-1] == "chat.unarchived"
    assert (chats / "journey" / "history.md").read_bytes().startswith(text)


def test_trashed_it_is_found_by_name_and_not_listed(workspace: Workspace, chat: Chat, chats: Path, trash: Path) -> None:
    text = chat.md.read_bytes()
    chat.directory.rmdir()
    assert workspace.events()[-1] == {"type": "chat.trashed", "chat": chat.id}
    assert "trash" not in os.listdir(workspace.directory)
    assert "by-id" not in os.listdir(workspace.directory)
    assert os.listdir(trash) == ["trip"]
    assert (trash / "trip" / "history.md").read_bytes() == text
    with refused(errno.EPERM):
        (trash / "trip").rmdir()
    with refused(errno.EPERM):
        trash.rmdir()
    (trash / "trip").rename(chats / "again")
    assert kinds(workspace)[-2:] == ["chat.renamed", "chat.restored"]
    assert (chats / "again" / "history.md").read_bytes() == text
    assert os.listdir(trash) == []


def test_several_of_one_name_in_the_trash(workspace: Workspace, chats: Path, trash: Path) -> None:
    for number in range(3):
        chat = workspace.chat()
        chat.say(f"number {number}")
        chat.directory.rmdir()
    assert os.listdir(trash) == ["trip", "trip~2", "trip~3"]
    (trash / "trip~2").rename(chats / "trip")
    assert b"number 1" in (chats / "trip" / "history.md").read_bytes()
    with refused(errno.ENOTEMPTY):
        (trash / "trip").rename(chats / "trip")


def test_rm_r_and_restore_bring_back_attachments(workspace: Workspace, chat: Chat, chats: Path, trash: Path) -> None:
    (chat.attachments / "kept").write_bytes(b"kept")
    (chat.attachments / "removed before").write_bytes(b"x")
    (chat.attachments / "removed before").unlink()
    (chat.directory / "notes~").write_bytes(b"scratch")
    text, log = chat.md.read_bytes(), chat.jsonl.read_bytes()
    subprocess.run(["rm", "-r", chat.directory], check=True)
    assert workspace.events()[-1]["since"] == len(log.splitlines()) + 1
    (trash / "trip").rename(chats / "trip")
    assert sorted(os.listdir(chat.directory)) == TREE
    assert os.listdir(chat.attachments) == ["kept"]
    assert (chat.attachments / "kept").read_bytes() == b"kept"
    assert chat.md.read_bytes() == text
    assert chat.jsonl.read_bytes().startswith(log)


def test_a_second_rm_r_after_a_restore(chat: Chat, chats: Path, trash: Path) -> None:
    (chat.attachments / "a").write_bytes(b"a")
    for _ in range(2):
        subprocess.run(["rm", "-r", chat.directory], check=True)
        (trash / "trip").rename(chats / "trip")
        assert (chat.attachments / "a").read_bytes() == b"a"


def test_an_open_log_of_a_trashed_chat_still_takes_lines(chat: Chat, chats: Path, trash: Path) -> None:
    with opened(chat.jsonl, os.O_WRONLY | os.O_APPEND) as log:
        chat.directory.rmdir()
        os.write(log, b"1\n")
    assert chat.events() == [1]


def test_a_chat_in_use_by_a_sandbox_is_busy(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chat = workspace.chat()

    async def start(store: Store) -> None:
        await store.driver.kv.put(f"sandboxes/{chat.id}", session_of(workspace.id, chat.id))

    elsewhere(mounted, start)
    with refused(errno.EBUSY):
        chat.directory.rmdir()
    with refused(errno.EBUSY):
        chat.directory.rename(workspace.directory / "archive" / "trip")
    chat.directory.rename(chat.directory.with_name("journey"))
    assert os.listdir(workspace.directory / "chats") == ["journey"]


def test_by_id(workspace: Workspace, chat: Chat, chats: Path, archive: Path) -> None:
    link = workspace.directory / "by-id" / chat.id
    assert link.readlink() == Path("../chats/trip")
    assert (link / "history.md").read_bytes() == chat.md.read_bytes()
    chat.directory.rename(archive / "journey")
    assert link.readlink() == Path("../archive/journey")
    (archive / "journey").rmdir()
    assert link.readlink() == Path("../trash/journey")
    assert (link / "history.jsonl").exists()
    assert os.listdir(workspace.directory / "by-id") == [chat.id]
    with refused(errno.ENOENT):
        os.lstat(workspace.directory / "by-id" / workspace.id)
    with refused(errno.EPERM):
        link.unlink()


def test_a_chat_moved_to_another_workspace_is_copied(mounted: Mounted) -> None:
    here, there = mounted.workspace("one"), mounted.workspace("two")
    chat = here.chat()
    chat.say("hello", "hi")
    (chat.attachments / "a").write_bytes(b"a")
    text, data = chat.md.read_bytes(), [entry.data for entry in chat.log()]
    target = there.directory / "chats" / "trip"
    with refused(errno.EXDEV):
        chat.directory.rename(target)
    subprocess.run(["mv", chat.directory, there.directory / "chats"], check=True)
    assert os.listdir(here.directory / "chats") == []
    moved = there.found("trip")
    assert moved.md.read_bytes() == text
    assert (moved.attachments / "a").read_bytes() == b"a"
    assert [entry.data for entry in moved.log()][: len(data)] == data
    assert [entry.origin is not None for entry in moved.log()][: len(data)] == [True] * len(data)


def test_directories_tell_that_they_changed(workspace: Workspace, chats: Path) -> None:
    times = [chats.stat().st_mtime_ns]
    chat = workspace.chat()
    times.append(chats.stat().st_mtime_ns)
    chat.directory.rename(chats / "journey")
    times.append(chats.stat().st_mtime_ns)
    (chats / "journey").rmdir()
    times.append(chats.stat().st_mtime_ns)
    assert times == sorted(set(times))
    assert chats.stat().st_nlink == 2


def test_directories_can_be_synced_and_statted(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    for directory in (mounted.mountpoint, mounted.mountpoint / "demo", chat.directory.parent, chat.directory):
        with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)
    found = os.statvfs(chat.directory)
    assert found.f_namemax == 255
    assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    assert found.f_files > 0


def test_everything_is_as_it_was_after_a_remount(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    for name in ("one", "two", "three"):
        workspace.chat(name).say(name)
    chats, archive = workspace.directory / "chats", workspace.directory / "archive"
    (chats / "two").rename(archive / "two")
    (chats / "three").rmdir()

    def tree() -> list[tuple[str, int, int, int]]:
        found = []
        for directory, names, files in os.walk(workspace.directory):
            for name in [*names, *files]:
                path = Path(directory) / name
                seen = path.lstat()
                size = seen.st_size if name != "workspace.json" else 0
                found.append((str(path), seen.st_ino, size, seen.st_mtime_ns))
        return sorted(found)

    before = tree()
    mounted.remount()
    assert tree() == before
    assert os.listdir(workspace.directory / "trash") == ["three"]


# ---- copies


@pytest.mark.parametrize("command", [["cp", "-r"], ["cp", "-a"]])
def test_cp_of_a_chat(workspace: Workspace, chat: Chat, chats: Path, command: list[str]) -> None:
    (chat.attachments / "a b").write_bytes(b"a" * 2_000_000)
    (chat.directory / "chat.json").write_text('{"title": "A trip", "labels": ["x"]}')
    chat.md.write_bytes(chat.md.read_bytes() + b"\n## user\n\nby hand\n")
    subprocess.run([*command, chat.directory, chats / "copy"], check=True)
    copy = workspace.found("copy")
    assert copy.md.read_bytes() == chat.md.read_bytes()
    assert [entry.data for entry in copy.log()] == [entry.data for entry in chat.log()]
    assert (copy.attachments / "a b").read_bytes() == b"a" * 2_000_000
    subprocess.run(["diff", "-r", "-x", "chat.json", "-x", "history.jsonl", chat.directory, copy.directory], check=True)


def test_tar_out_and_in(workspace: Workspace, chat: Chat, chats: Path, tmp_path: Path) -> None:
    (chat.attachments / "a").write_bytes(b"a")
    os.chmod(chat.attachments / "a", 0o755)
    subprocess.run(["tar", "-cf", tmp_path / "t.tar", "-C", chats, "trip"], check=True)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "t.tar", "-C", tmp_path / "out"], check=True)
    (tmp_path / "out" / "trip").rename(tmp_path / "out" / "copy")
    subprocess.run(["tar", "-cf", tmp_path / "c.tar", "-C", tmp_path / "out", "copy"], check=True)
    done = subprocess.run(["tar", "-xf", tmp_path / "c.tar", "-C", chats], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    copy = workspace.found("copy")
    assert copy.md.read_bytes() == chat.md.read_bytes()
    assert (copy.attachments / "a").stat().st_mode == 0o100755
    assert [entry.data for entry in copy.log()][: len(chat.log())] == [entry.data for entry in chat.log()]


def test_a_log_copied_into_a_new_chat(workspace: Workspace, chat: Chat) -> None:
    new = workspace.chat("new")
    new.jsonl.write_bytes(chat.jsonl.read_bytes())
    assert new.md.read_bytes() == chat.md.read_bytes()
    temporary = workspace.chat("other").directory / "history.jsonl.tmp"
    temporary.write_bytes(chat.jsonl.read_bytes())
    temporary.rename(temporary.with_name("history.jsonl"))
    assert (temporary.with_name("history.md")).read_bytes() == chat.md.read_bytes()
