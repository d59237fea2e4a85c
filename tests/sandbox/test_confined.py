"""`chatfs sandbox run`: what a sandbox could do with what it is given, and with what is around it."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import orjson
import pytest

from tests.sandbox.conftest import Chat, Sandboxed

pytestmark = [pytest.mark.mount, pytest.mark.container]


def test_its_files_are_not_opened_anew(demo: Sandboxed, chat: Chat, tmp_path: Path) -> None:
    """A file that it reads could be written, else, and of one that it appends to all could be read."""
    given, log = tmp_path / "given", tmp_path / "log"
    given.write_text("precious\n")
    log.write_text("somebody else's\n")
    script = (
        "(echo x > /proc/self/fd/0) 2>/dev/null; cat; echo problem >&2; timeout 1 cat /proc/self/fd/1 >&2; echo end"
    )
    with given.open("rb") as stdin, log.open("ab") as stdout:
        process = demo.begin(
            "sandbox", "run", chat.path, "--", "bash", "-c", script, stdin=stdin, stdout=stdout, stderr=stdout
        )
        assert process.wait(30) == 0
    assert given.read_text() == "precious\n"
    assert log.read_text().replace("x\n", "") == "somebody else's\nprecious\nproblem\nend\n"


def test_a_command_that_does_not_read_ends(demo: Sandboxed, chat: Chat, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(bytes(1 << 20))
    with given.open("rb") as stdin:
        process = demo.begin("sandbox", "run", chat.path, "--", "sh", "-c", "exec <&-; exit 3", stdin=stdin)
        assert process.wait(30) == 3


def test_it_writes_nowhere_without_bound(chat: Chat) -> None:
    script = """
        for place in / /dev /etc /proc /proc/sys /usr /dev/pts; do touch $place/made && echo $place; done 2>/dev/null
        for place in /tmp /dev/shm; do touch $place/made && stat --file-system --format '%n %S %b' $place; done
        dd if=/dev/zero of=/dev/null count=1 2>/dev/null && python3 -c 'import os; print(os.openpty()[0] > 0)'
    """
    code, out, err = chat.sandbox("--", "sh", "-c", script)
    assert (code, err) == (0, "")
    *places, terminal = out.splitlines()
    assert [place.split()[0] for place in places] == ["/tmp", "/dev/shm"]
    assert all(int(size) * int(blocks) <= 1 << 30 for _, size, blocks in map(str.split, places))
    assert terminal == "True"


def test_its_options_name_nothing_of_outside(demo: Sandboxed, chat: Chat) -> None:
    code, out, _ = chat.sandbox("--", "sh", "-c", "cat /proc/*/cmdline /proc/*/environ /proc/self/mountinfo")
    assert code == 0
    assert str(demo.root) not in out


PROBE = """
import ctypes, json, os, socket, struct, sys
libc = ctypes.CDLL(None)
name, port = sys.argv[1], int(sys.argv[2])
found = {"descriptors": sorted(os.listdir("/proc/self/fd"))}
for pid in ("1", "self"):
    with open(f"/proc/{pid}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    found[pid] = sorted({lines[key].strip("\\t\\n0") for key in lines if key.startswith("Cap")})
    found["privileges"] = lines["NoNewPrivs"].strip()

def reached(family, address):
    with socket.socket(family) as connection:
        try:
            connection.connect(address)
        except OSError:
            return False
        return True

found["sockets"] = [reached(socket.AF_UNIX, chr(0) + name), reached(socket.AF_INET, ("127.0.0.1", port))]

def handles():
    opened = 0
    for place in ("/chat", "/usr"):
        directory, mount = os.open(place, os.O_RDONLY), ctypes.c_int()
        handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
        libc.syscall(303, -100, place.encode(), handle, ctypes.byref(mount), 0)
        root = ctypes.create_string_buffer(struct.pack("IiII", 8, 1, 2, 0) + bytes(128))
        for each in (handle, root):
            for flags in (0, os.O_DIRECTORY):
                opened += libc.syscall(304, directory, each, flags) >= 0
    return opened

found["handles"] = [handles(), libc.unshare(0x10020000) and 0, handles()]
print(json.dumps(found))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are that machine's")
def test_a_look_from_inside(chat: Chat) -> None:
    """No descriptor, no capability, no service of the machine's; files aren't opened by what the kernel calls them."""
    name = f"chatfs-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_INET) as local:
        abstract.bind(f"\0{name}")
        local.bind(("127.0.0.1", 0))
        for each in (abstract, local):
            each.listen()
        code, out, err = chat.sandbox("--", "/usr/bin/python3", "-c", PROBE, name, str(local.getsockname()[1]))
    assert (code, err) == (0, "")
    assert orjson.loads(out) == {
        "descriptors": ["0", "1", "2", "3"],  # the last one reads this list
        "1": [""],
        "self": [""],
        "privileges": "1",
        "sockets": [False, False],
        "handles": [0, 0, 0],
    }
