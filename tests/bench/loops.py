"""The inner loops, each in a process of its own that has nothing else to do: `tests.bench.client` runs them.

::

    python -I -S loops.py NAME ARGUMENT…

A loop is a generator: what comes before its first `yield` isn't measured (opening files, warming caches), what comes
before the second is, and that yields the seconds it took; what comes behind checks what was done. The program prints
"ready" and waits for a line; it prints the seconds and waits for another; it checks, and prints "checked".

Only the standard library, and little of it: a loop is a few system calls and Python's own 0.1 to 1 µs for each, which
the native file system's figure shows. For one thread.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

Loop = Iterator[float]

CHUNK: Final = 1 << 20
PAGE: Final = 4096
LINE: Final = b'{"role":"user","content":"%s"}\n' % (b"x" * (200 - 29))
"""200 bytes, as history.jsonl takes them."""
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_FORCE_SYNC: Final = 0x2000
_STATX_BASIC_STATS: Final = 0x7FF


def _check(path: str, size: int, wanted: int) -> None:
    if size < wanted:
        sys.exit(f"{path} has {size} bytes instead of {wanted}")


def dd(path: str, times: str) -> Loop:
    """dd(1) with bs=1M, of a file that was read before; its own clock, of `times` runs."""
    environment = {**os.environ, "LC_ALL": "C"}
    size = os.stat(path).st_size

    def once() -> float:
        done = subprocess.run(
            ["dd", f"if={path}", "of=/dev/null", "bs=1M"], check=True, capture_output=True, env=environment, text=True
        )
        found = re.search(r"(\d+) bytes.* copied, ([\d.e+-]+) s,", done.stderr)
        if found is None or int(found[1]) != size:
            sys.exit(f"dd says: {done.stderr}")
        return float(found[2])

    once()
    yield 0.0
    yield sum(once() for _ in range(int(times)))


def read(path: str, size: str) -> Loop:
    """Read a whole file once, a MiB at a time, opening and closing included."""
    buffers = [bytearray(CHUNK)]
    got = total = 0
    yield 0.0
    start = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    while got := os.readv(fd, buffers):
        total += got
    os.close(fd)
    yield time.perf_counter() - start
    _check(path, total, int(size))


def _offsets(path: str, count: int) -> list[int]:
    pages = os.stat(path).st_size // PAGE
    if pages < count:
        sys.exit(f"{path} has {pages} pages, {count} are to be read")
    return [page * PAGE for page in random.sample(range(pages), count)]


def pread(path: str, count: str, warm: str) -> Loop:
    """Read single pages at random, none twice, through one descriptor; of a file that was read before, if `warm`."""
    offsets = _offsets(path, int(count))
    buffers = [bytearray(PAGE)]
    fd = os.open(path, os.O_RDONLY)
    if warm == "warm":
        while os.read(fd, CHUNK):
            pass
    preadv, total = os.preadv, 0
    yield 0.0
    start = time.perf_counter()
    for offset in offsets:
        total += preadv(fd, buffers, offset)
    yield time.perf_counter() - start
    os.close(fd)
    _check(path, total, PAGE * len(offsets))


def stat(directory: str, count: str) -> Loop:
    """stat(2) of names that were looked up before."""
    names = sorted(os.listdir(directory))[:100]
    paths = [os.path.join(directory, name) for name in names]
    call, rounds = os.stat, range(int(count) // len(paths))
    for path in paths:
        call(path)
    yield 0.0
    start = time.perf_counter()
    for _ in rounds:
        for path in paths:
            call(path)
    yield time.perf_counter() - start


def lookup(directory: str, count: str) -> Loop:
    """stat(2) of names that nobody has asked for yet: one LOOKUP each. There is one more file than is asked for."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    # Names as `tests.bench.stage` makes them: listing the directory would look them up.
    names = [f"{number:06d}.bin" for number in range(int(count))]
    random.shuffle(names)
    call = os.stat
    call(f"{len(names):06d}.bin", dir_fd=fd)  # what the first use of the directory costs isn't a round trip
    yield 0.0
    start = time.perf_counter()
    for name in names:
        call(name, dir_fd=fd)
    yield time.perf_counter() - start
    os.close(fd)


def getattr_(path: str, count: str) -> Loop:
    """statx(2) with AT_STATX_FORCE_SYNC: one GETATTR each, whatever the timeouts are."""
    statx = ctypes.CDLL(None, use_errno=True).statx
    buffer = ctypes.create_string_buffer(256)
    fd = os.open(path, os.O_PATH)
    arguments = (fd, b"", _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer)
    rounds, failed = range(int(count)), 0
    yield 0.0
    start = time.perf_counter()
    for _ in rounds:
        failed += statx(*arguments)
    yield time.perf_counter() - start
    os.close(fd)
    if failed:
        sys.exit(f"statx of {path}: {os.strerror(ctypes.get_errno())}")


def append(path: str, count: str) -> Loop:
    """Lines, each with a write(2) of its own, through one descriptor."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    write, rounds, line, written = os.write, range(int(count)), LINE, 0
    yield 0.0
    start = time.perf_counter()
    for _ in rounds:
        written += write(fd, line)
    yield time.perf_counter() - start
    os.close(fd)
    _check(path, written, len(line) * len(rounds))
    _check(path, os.stat(path).st_size, written)


def append_each(path: str, count: str) -> Loop:
    """Lines, each with an open(2), a write(2) and a close(2), as `echo >>` does it."""
    flags, rounds, line = os.O_WRONLY | os.O_APPEND, range(int(count)), LINE
    yield 0.0
    start = time.perf_counter()
    for _ in rounds:
        fd = os.open(path, flags)
        os.write(fd, line)
        os.close(fd)
    yield time.perf_counter() - start
    _check(path, os.stat(path).st_size, len(line) * len(rounds))


def create(directory: str, count: str, size: str) -> Loop:
    """Small files of different bytes, each with an open(2), a write(2) and a close(2)."""
    files = [(os.path.join(directory, f"{n:06d}.bin"), os.urandom(int(size))) for n in range(int(count))]
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    yield 0.0
    start = time.perf_counter()
    for path, content in files:
        fd = os.open(path, flags, 0o644)
        os.write(fd, content)
        os.close(fd)
    yield time.perf_counter() - start
    for path, content in (files[0], files[-1]):
        with open(path, "rb") as file:
            if file.read() != content:
                sys.exit(f"{path} hasn't what was written to it")


def write(path: str, size: str) -> Loop:
    """One large file, a MiB at a time."""
    block = memoryview(os.urandom(16 * CHUNK + 4099))
    pieces = range(int(size) // CHUNK)
    yield 0.0
    start = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for number in pieces:
        # No two pieces are alike: where they begin moves on.
        at = number * 65_537 % (len(block) - CHUNK)
        piece = block[at : at + CHUNK]
        while piece:
            piece = piece[os.write(fd, piece) :]
    os.close(fd)
    yield time.perf_counter() - start
    _check(path, os.stat(path).st_size, CHUNK * len(pieces))


def ls(directory: str, count: str) -> Loop:
    """ls(1) with -l, starting it included."""
    environment = {**os.environ, "LC_ALL": "C"}
    yield 0.0
    start = time.perf_counter()
    done = subprocess.run(["ls", "-l", directory], check=True, capture_output=True, env=environment)
    yield time.perf_counter() - start
    listed = done.stdout.count(b"\n") - 1  # "total …"
    if listed != int(count):
        sys.exit(f"{directory} lists {listed} names instead of {count}")


LOOPS: Final[dict[str, Callable[..., Loop]]] = {
    loop.__name__.rstrip("_").replace("_", "-"): loop
    for loop in (dd, read, pread, stat, lookup, getattr_, append, append_each, create, write, ls)
}


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    """See the module's docstring."""
    loop = LOOPS[sys.argv[1]](*sys.argv[2:])
    next(loop)
    gc.disable()
    _say("ready")
    if not sys.stdin.readline():
        return
    _say(next(loop))
    if not sys.stdin.readline():
        return
    next(loop, None)
    _say("checked")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(str(error))
