"""System calls that Python has no function for, refusals by name, and the store's library beside a mount."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from store.chat import Chat as StoreChat
from store.library import Store, open_store
from store.workspace import Workspace as StoreWorkspace
from store.workspace_state import Place
from tests.support.mounts import Mounted

T = TypeVar("T")

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
NOREPLACE, EXCHANGE = 1, 2
"""The flags of renameat2(2)."""
EVERYWHERE = (Place.CHATS, Place.ARCHIVE, Place.TRASH)

_libc = ctypes.CDLL(None, use_errno=True)


def digest(data: bytes) -> str:
    """As attachments' events name what is in them."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blobs(mounted: Mounted) -> set[Path]:
    """The files in which a mount's store keeps attachments."""
    return {path for path in (mounted.store / "objects").rglob("*") if path.is_file()}


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[None]:
    """Every user can come to the directory meanwhile."""
    changed = []
    for each in (path, *path.parents):
        mode = stat.S_IMODE(each.stat().st_mode)
        if not mode & 0o001 and each.stat().st_uid == os.geteuid():
            each.chmod(mode | 0o011)
            changed.append((each, mode))
    yield
    for each, mode in changed:
        each.chmod(mode)


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """The block must fail with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def renameat2(source: Path, target: Path, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor, closed at the end: errors of close(2) are raised."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)


def append(path: Path, data: bytes) -> int:
    """One write(2) at the end: how many bytes were taken."""
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        return os.write(descriptor, data)


def elsewhere(mounted: Mounted, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do something with the store's library in this process, beside the mount's."""

    async def run() -> T:
        async with open_store(mounted.url) as store:
            return await work(store)

    return trio.run(run)


def with_chat(
    mounted: Mounted, workspace: str, chat: str, work: Callable[[StoreWorkspace, StoreChat], Awaitable[T]]
) -> T:
    """Likewise, with one chat."""

    async def run(store: Store) -> T:
        where = await store.workspace(workspace)
        return await work(where, await where.chat(chat, EVERYWHERE))

    return elsewhere(mounted, run)


def say_elsewhere(mounted: Mounted, workspace: str, chat: str, *contents: str) -> None:
    """Append messages by the user to a chat, past the mount."""

    async def work(_: StoreWorkspace, found: StoreChat) -> None:
        await found.append_events([{"role": "user", "content": content} for content in contents], "elsewhere")

    with_chat(mounted, workspace, chat, work)


def rests(text: Path) -> bool:
    """Whether a history.md has been left alone long enough to be read through the kernel's cache."""
    with text.open("rb") as file:
        try:
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ).close()
        except OSError:
            return False
    return True
