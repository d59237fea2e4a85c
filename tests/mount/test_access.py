"""Who may do what: an append-only mount against every call that changes a file, and other users in a shared mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Chat, data, message, mounting, read_log
from tests.support.ops import opened, reachable, refused

pytestmark = pytest.mark.mount

NOBODY = 65_534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
RWF_NOAPPEND = 0x20
APPENDING = os.O_WRONLY | os.O_APPEND
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(descriptor: int, mode: int, size: int) -> None:
    """fallocate(2), from the start."""
    if _libc.fallocate(descriptor, mode, ctypes.c_long(0), ctypes.c_long(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def appending(chat: Chat, use: Callable[[int], object]) -> None:
    """Do that with a descriptor to append to the log."""
    with opened(chat.jsonl, APPENDING) as descriptor:
        use(descriptor)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that everybody can come to."""
    with reachable(tmp_path):
        yield tmp_path


def test_no_call_changes_what_stands_in_an_append_only_mount(tmp_path: Path) -> None:
    with mounting(tmp_path) as mounted:
        chat = mounted.workspace().chat()
        chat.say("hello")
        (chat.attachments / "a").write_bytes(b"attached")
    log = chat.log_file.read_bytes()
    with mounting(tmp_path, "--append-only"):
        for path in (chat.jsonl, chat.md, chat.directory / "chat.json", chat.attachments / "a"):
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, APPENDING | os.O_TRUNC):
                with refused(errno.EPERM):
                    os.open(path, flags)
            for change in (
                lambda: os.truncate(path, 0),  # noqa: B023 - called at once
                lambda: path.chmod(0o777),  # noqa: B023
                lambda: os.chown(path, os.getuid(), os.getgid()),  # noqa: B023
                lambda: os.utime(path, (1, 1)),  # noqa: B023
                lambda: path.rename(path.with_name("other")),  # noqa: B023
                lambda: path.with_name("other").hardlink_to(path),  # noqa: B023
                lambda: path.with_name("other").symlink_to(path),  # noqa: B023
                lambda: os.mknod(path.with_name("other")),  # noqa: B023
                lambda: path.with_name("other").mkdir(),  # noqa: B023
                path.unlink,
            ):
                with refused(errno.EPERM):
                    change()
            with refused(errno.ENOTSUP):
                os.setxattr(path, "user.x", b"x")
            with refused(errno.ENOTSUP):
                os.open(path.parent, os.O_TMPFILE | os.O_RDWR)
        for code, use in (
            (errno.EPERM, lambda fd: os.ftruncate(fd, 0)),
            (errno.EPERM, lambda fd: os.fchmod(fd, 0o777)),
            (errno.ENOTSUP, lambda fd: fallocate(fd, 0, 1 << 20)),
            (errno.ENOTSUP, lambda fd: fallocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 100)),
            (errno.ENOTTY, lambda fd: fcntl.ioctl(fd, 0x40086602, bytes(8))),
        ):
            with refused(code):
                appending(chat, use)
        with opened(chat.jsonl, os.O_RDWR | os.O_APPEND) as descriptor, refused(errno.ENODEV):
            mmap.mmap(descriptor, 10)
        assert chat.log_file.read_bytes() == log

        # Wherever they say that they write, it comes behind what is there.
        appending(chat, lambda fd: os.pwrite(fd, message("pwrite"), 0))
        appending(chat, lambda fd: (fcntl.fcntl(fd, fcntl.F_SETFL, 0), os.pwrite(fd, message("cleared"), 0)))
        appending(chat, lambda fd: os.pwritev(fd, [message("flagged")], 0, RWF_NOAPPEND))
        assert chat.log_file.read_bytes().startswith(log)
        assert [event["content"] for event in data(read_log(chat.log_file))[-3:]] == ["pwrite", "cleared", "flagged"]


_EVERYTHING = """
import os, sys
from pathlib import Path
chat = Path(sys.argv[1])
files = [chat / "history.jsonl", chat / "history.md", chat / "chat.json", chat / "attachments/a", chat / ".scratch"]
done = []
def attempt(name, use):
    try:
        use()
    except PermissionError:
        return
    done.append(name)
for path in files:
    path.read_bytes()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
        attempt(f"open {path.name} {flags:o}", lambda: os.open(path, flags))
    attempt(f"truncate {path.name}", lambda: os.truncate(path, 0))
    attempt(f"chmod {path.name}", lambda: path.chmod(0o777))
    attempt(f"chown {path.name}", lambda: os.chown(path, os.getuid(), os.getgid()))
    attempt(f"utime {path.name}", lambda: os.utime(path))
    attempt(f"utime {path.name} to a time", lambda: os.utime(path, (1, 1)))
    attempt(f"rename {path.name}", lambda: path.rename(path.with_name("other")))
    attempt(f"unlink {path.name}", path.unlink)
for directory in (chat, chat / "attachments", chat.parent, chat.parent.parent, chat.parent.parent.parent):
    for name in ("new", ".new"):
        attempt(f"create in {directory}", lambda: os.open(directory / name, os.O_WRONLY | os.O_CREAT, 0o666))
        attempt(f"mkdir in {directory}", (directory / name).mkdir)
        attempt(f"symlink in {directory}", lambda: (directory / name).symlink_to("/"))
    attempt(f"chmod {directory}", lambda: directory.chmod(0o777))
    attempt(f"rename {directory}", lambda: directory.rename(directory.with_name("other")))
    attempt(f"rmdir {directory}", directory.rmdir)
attempt("restore", lambda: (chat.parent.parent / "trash/gone").rename(chat.parent / "back"))
print(done)
"""


@AS_ROOT
def test_whom_the_modes_only_let_read_can_change_nothing(shared: Path) -> None:
    if subprocess.run([*AS_NOBODY, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("another user can't run this Python")
    with mounting(shared, "--allow-other", "--umask", "022") as mounted:
        workspace = mounted.workspace()
        workspace.chat("gone").directory.rmdir()
        chat = workspace.chat()
        chat.say("hello")
        (chat.attachments / "a").write_bytes(b"attached")
        (chat.directory / ".scratch").write_bytes(b"scratch")
        (chat.directory / ".scratch").chmod(0o644)
        before = chat.log_file.read_bytes(), workspace.log_file.read_bytes()
        command = [*AS_NOBODY, sys.executable, "-"]
        done = subprocess.run(
            [*command, str(chat.directory)], input=_EVERYTHING, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.stdout, done.stderr) == ("[]\n", "")
        assert (chat.log_file.read_bytes(), workspace.log_file.read_bytes()) == before


@AS_ROOT
def test_the_user_whom_the_files_are_given_to_uses_them_as_their_own(shared: Path) -> None:
    script = """
    set -e; cd "$1"; printf '%s\\n' '{"role":"user","content":"hello"}' >> history.jsonl
    sed -i s/hello/edited/ history.md; echo x > attachments/a; chmod 640 attachments/a
    touch -d 2020-01-01 attachments/a
    chown "$(id -u):$(id -g)" history.md; echo x > scratch; echo y >> scratch; ln -s x link; mkdir ../new; rmdir ../new
    ! chown 0:0 history.md 2> /dev/null
    """
    owner = ["--uid", str(NOBODY), "--gid", str(NOBODY)]
    with mounting(shared, "--allow-other", *owner) as mounted:
        chat = mounted.workspace().chat()
        command = [*AS_NOBODY, "sh", "-c", script, "sh"]
        done = subprocess.run([*command, str(chat.directory)], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert [kind for kind in chat.types() if kind != "attachment.changed"] == [
            "message.appended",
            "message.edited",
            "attachment.put",
        ]
        status = (chat.attachments / "a").stat()
        assert (status.st_uid, status.st_mode & 0o7777, status.st_mtime < 1.6e9) == (NOBODY, 0o640, True)
        assert (chat.directory / "scratch").read_bytes() == b"x\ny\n"
        assert {entry.actor.partition("/")[0] for entry in chat.log()} == {f"uid:{NOBODY}"}
        assert all(path.lstat().st_uid == 0 for path in mounted.store.rglob("*"))
