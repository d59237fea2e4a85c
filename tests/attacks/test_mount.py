"""Who may use a mount and means harm: through one that only appends, as another user, with forged lines and sizes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from store.model import LINE_MAX
from tests.support.mounts import Chat, Mounted, message, mounting
from tests.support.ops import append, reachable, refused
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

NOBODY = 4242
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def as_nobody(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A shell script as a user that has nothing here."""
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", script, "sh"]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def open_path(tmp_path: Path) -> Iterator[Path]:
    """A directory that everybody can come to."""
    with reachable(tmp_path):
        yield tmp_path


@AS_ROOT
def test_another_user_without_allow_other_sees_nothing(open_path: Path) -> None:
    with mounting(open_path) as mounted:
        mounted.workspace().chat().say("secret")
        done = as_nobody(
            'ls "$1"; cat "$1"/demo/chats/trip/history.md; stat -f "$1"; ls -R "$2"', mounted.mountpoint, mounted.store
        )
        assert done.returncode
        assert "secret" not in done.stdout
        assert "demo" not in done.stdout
        assert done.stderr.count("Permission denied") >= 3


@AS_ROOT
def test_another_user_with_allow_other_has_what_the_modes_give_and_is_named_in_the_log(open_path: Path) -> None:
    with mounting(open_path, "--allow-other") as mounted:
        trip = mounted.workspace().chat()
        trip.say("secret")
        assert as_nobody('cat "$1"', trip.md).returncode
        assert as_nobody('echo x >> "$1"', trip.jsonl).returncode
    with mounting(open_path, "--allow-other", "--umask", "000") as mounted:
        line = '{"seq":1,"ts":1,"actor":"uid:0/root","data":{"role":"user","content":"forged"},"crc":"00000000"}'
        done = as_nobody(
            """cat "$1" > /dev/null; printf '%s\\n' "$3" >> "$2"; chown 4242 "$1"; chmod 4777 "$2"; ls -R "$4" """,
            trip.md,
            trip.jsonl,
            line,
            mounted.store,
        )
        assert done.stderr.count("not permitted") == 2
        assert "Permission denied" in done.stderr
        last = trip.log()[-1]
        assert last.actor.startswith(f"uid:{NOBODY}/")
        assert last.origin is not None
        assert last.origin.actor == "uid:0/root"
        assert last.seq == len(trip.log())
        for path in mounted.store.rglob("*"):
            assert path.lstat().st_uid == os.geteuid()


def test_no_mode_makes_a_program_of_its_owner(chat: Chat) -> None:
    """Neither chmod, nor a line of the log: root's `cp -a` would keep it."""
    attached = chat.attachments / "program"
    attached.write_bytes(Path("/bin/true").read_bytes())
    for path in (attached, chat.directory / "scratch~", chat.md):
        path.touch()
        path.chmod(0o6755)
        assert path.stat().st_mode & 0o7000 == 0
    put = next(event for event in chat.events() if event["type"] == "attachment.put")
    forged = {**put, "name": "forged", "id": "0" * 8 + put["id"][8:], "mode": 0o4755}
    append(chat.jsonl, orjson.dumps(forged) + b"\n")
    assert (chat.attachments / "forged").stat().st_mode & 0o7000 == 0
    for path in chat.log_file.parent.rglob("*"):
        assert path.lstat().st_mode & 0o7000 == 0


def test_forged_envelopes_get_a_seq_an_actor_and_a_checksum_of_their_own(chat: Chat) -> None:
    before = len(chat.log())
    for forged in (
        b'{"seq":1,"ts":1,"actor":"uid:0/root","data":{"role":"user","content":"a"},"crc":"00000000"}',
        b'{"seq":-1,"ts":1,"actor":"uid:0/root","data":{"role":"user","content":"b"},"crc":"00000000"}',
        b'{"seq":99999999999999999999,"ts":1,"actor":"x","data":{"role":"user","content":"c"}}',
        b'{"seq":1,"ts":-5,"actor":"x","data":[]}',
        b'{"seq":1,"ts":99999999999999999,"actor":"x","data":[]}',
        b'{"seq":1,"ts":1,"actor":"\\u001b[2J","data":{"type":"x"},"origin":{"actor":"root","ts":1}}',
        b'{"seq":1,"seq":2,"ts":1,"actor":"x","data":1,"data":{"role":"user","content":"d"}}',
    ):
        append(chat.jsonl, forged + b"\n")
    entries = chat.log()  # whose checksums are checked
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert len(entries) == before + 7
    assert {entry.actor.partition("/")[0] for entry in entries} == {f"uid:{os.geteuid()}"}


def test_a_line_of_16_mib_nested_10000_deep(chat: Chat) -> None:
    before = chat.log_file.read_bytes()
    deep = b"[" * 10_000 + b"1" + b"]" * 10_000
    line = b'{"role":"user","content":"' + b"x" * (LINE_MAX - len(deep) - 100) + b'","deep":' + deep + b"}\n"
    with refused(errno.EINVAL), chat.jsonl.open("ab", buffering=0) as log:
        view = memoryview(line)
        while view:
            view = view[log.write(view) :]
    assert chat.log_file.read_bytes() == before
    assert b"hello" in chat.md.read_bytes()


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1, (64 << 30) + 1])
def test_huge_sizes(chat: Chat, size: int) -> None:
    attached = chat.attachments / "a"
    attached.write_bytes(b"x")
    chat.events()
    for path in (attached, chat.md, chat.directory / "chat.json"):
        with pytest.raises(OSError) as caught:
            os.truncate(path, size)
        assert caught.value.errno in {errno.EFBIG, errno.EINVAL, errno.EPERM}
    with refused(errno.EPERM):
        os.truncate(chat.jsonl, size)
    with refused(errno.EINVAL):
        os.truncate(attached, -1)
    assert attached.read_bytes() == b"x"
    assert chat.events() == []


def test_names_that_climb_out_are_names_or_refused(shared_mount: Mounted, chat: Chat) -> None:
    """In commands that take one; through the mount the kernel gives single names."""
    outside = shared_mount.root / "outside"
    outside.mkdir(exist_ok=True)
    workspace = chat.directory.parents[1].name
    for words in (
        ("chat", "new", f"{workspace}/../outside"),
        ("chat", "new", f"{workspace}/.."),
        ("chat", "rename", f"{workspace}/trip", "../outside"),
        ("chat", "restore", f"{workspace}/../../outside"),
        ("workspace", "create", "../outside"),
        ("workspace", "create", "/etc"),
        ("append", "../outside/trip", "-"),
        ("sandbox", "run", "../outside/trip", "--", "true"),
        ("mount", "--root", "../outside", str(outside)),
    ):
        done = shared_mount.cli(*words, check=False)
        assert done.returncode in {1, 2}, words
        assert b"Traceback" not in done.stderr, words
    assert os.listdir(outside) == []


def test_requests_after_the_unmount(tmp_path: Path) -> None:
    """A lazy unmount leaves open files to who has them; then the daemon ends, and they get an error, nobody hangs."""
    with Mounted(tmp_path) as mounted:
        trip = mounted.workspace().chat()
        trip.say("kept")
        reading = os.open(trip.md, os.O_RDONLY)
        appending = os.open(trip.jsonl, os.O_WRONLY | os.O_APPEND)
        assert os.write(appending, message("before")) > 0
        subprocess.run(["fusermount3", "-uz", mounted.mountpoint], check=True)
        assert mounted.process is not None
        mounted.process.send_signal(signal.SIGTERM)
        mounted.process.wait(30)
        for request in (
            lambda: os.write(appending, message("after")),
            lambda: os.fstat(appending),
            lambda: os.pread(reading, 1, 1 << 20),
        ):
            with pytest.raises(OSError) as caught:
                request()
            assert caught.value.errno in {errno.ENOTCONN, errno.EIO, errno.ECONNABORTED, errno.ENODEV}
        for fd in (reading, appending):
            with contextlib.suppress(OSError):
                os.close(fd)
        mounted.process = None
        assert [entry.data.count(b"before") for entry in trip.log()][-1] == 1


OPENER = """
import os, sys
opened = []
try:
    for number in range(1000):
        opened.append(os.open(f"{sys.argv[1]}/s{sys.argv[2]}-{number}~", os.O_CREAT | os.O_RDWR))
except OSError as error:
    print(error.errno, flush=True)
sys.stdin.read()
"""


def test_many_openers_and_too_few_descriptors(tmp_path: Path) -> None:
    """Who opens all that the daemon may have open gets an error; when they are gone, all is as before."""
    limit = ["prlimit", "--nofile=256:256"]
    with Mounted(tmp_path) as mounted:
        trip = mounted.workspace().chat()
        trip.say("kept")
        assert mounted.process is not None
        subprocess.run([*limit, "--pid", str(mounted.process.pid)], check=True)
        mounted.expected_trouble.append(".*")
        script = OPENER
        openers = [
            subprocess.Popen(
                [sys.executable, "-c", script, trip.directory, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for number in range(4)
        ]
        try:
            for opener in openers:
                assert opener.stdout is not None
                assert int(opener.stdout.readline()) in {errno.EMFILE, errno.ENFILE}
            assert mounted.process.poll() is None
        finally:
            for opener in openers:
                opener.communicate(b"")
        for path in trip.directory.glob("s*~"):
            path.unlink()
        wait_for(lambda: len(os.listdir(f"/proc/{mounted.process.pid}/fd")) < 100 if mounted.process else True, 30)
        append(trip.jsonl, message("still here"))
        assert "still here" in trip.md.read_text()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_all_that_the_store_makes_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        tmp_path.chmod(0o700)
        with mounting(tmp_path) as mounted:
            os.umask(before)
            trip = mounted.workspace().chat()
            trip.say("x")
            (trip.attachments / "a").write_bytes(b"a" * 2_000_000)
            (trip.directory / "s~").write_bytes(b"s")
            trip.md.write_text(trip.md.read_text() + "more")
            wrong = {
                str(path.relative_to(mounted.store)): oct(path.lstat().st_mode)
                for path in [mounted.store, *mounted.store.rglob("*")]
                if path.lstat().st_mode & (0o022 if path.suffix == ".lock" or path.name == "s~" else 0o077)
                or path.lstat().st_mode & 0o600 != 0o600
            }
            assert wrong == {}
    finally:
        os.umask(before)
        if (tmp_path / "mnt").exists():
            (tmp_path / "mnt").chmod(0o700)


def test_a_squatted_socket(tmp_path: Path) -> None:
    """Somebody listens where another process of the store should, and says nothing, or nonsense."""
    with mounting(tmp_path) as mounted:
        trip = mounted.workspace().chat()
        trip.say("x")  # it holds the lease now
        (sock,) = (mounted.store / "instances").glob("*.sock")
        sock.unlink()
        with socket.socket(socket.AF_UNIX) as squatter:
            directory = os.open(sock.parent, os.O_PATH)
            squatter.bind(f"/proc/self/fd/{directory}/{sock.name}")  # a path may have 107 bytes
            os.close(directory)
            squatter.listen()
            squatter.settimeout(0.2)
            done = subprocess.Popen(
                [sys.executable, "-m", "fusefs", "append", "demo/trip", "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=mounted.environment(),
                cwd=Path(__file__).parents[2],
            )
            assert done.stdin is not None
            done.stdin.write(message("from a command"))
            done.stdin.close()
            done.stdin = None
            while done.poll() is None:
                try:
                    connection, _ = squatter.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.sendall(b"a\xff\xff\xff\xff" + b"nonsense" * 100)
            assert done.communicate()[0].strip().isdigit()
            assert done.returncode == 0
        assert [entry.data.count(b"from a command") for entry in trip.log()] == [0, 1]
