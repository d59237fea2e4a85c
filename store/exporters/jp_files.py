"""JP's directories, as an export changes them: by descriptor, so that no link that comes there meanwhile is followed.

JP keeps a conversation twice where the project has a user's storage: in `<user's storage>/conversations/`, too. Of the
two it reads the newer files, so what is written to the project counts. Where a conversation is, each says for itself:
one that is archived, or brought back, is moved in both, as JP does it.

Concurrency: blocking, for a thread; the caller has the conversation's lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from store.importers.jp import JpChat, conversations_in
from store.importers.jp_format import (
    ARCHIVE,
    BASE_CONFIG,
    CONVERSATIONS,
    EVENTS,
    METADATA,
    PROJECT,
    conversation_id,
)
from store.importers.jp_json import pretty
from store.importers.jp_lock import user_storage
from store.projection.tree import Directory, Strange

_LABEL: Final = "jp"
_LEFT: Final = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
"""What is written beside a name before it gets it."""


def open_root(target: Path) -> Directory:
    """The `conversations` directory in `target`, made where it isn't there; what `target` is in must be there."""
    if not target.exists():
        target.mkdir()
    elif not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a directory: name a project of JP", str(target))
    elif (found := conversations_in(target)) is not None:
        return _opened(found)
    directory = _followed(target)
    for name in [CONVERSATIONS] if target.name == PROJECT else [PROJECT, CONVERSATIONS]:
        with directory:
            directory = directory.make(name)
    return directory


def _opened(root: Path) -> Directory:
    """A `conversations` directory; of those that are JP's, none may be a link."""
    names, above = [], root
    while above.name in {CONVERSATIONS, PROJECT}:
        names.append(above.name)
        above = above.parent
    directory = _followed(above)
    for name in reversed(names):
        with directory:
            directory = directory.sub(name)
    return directory


def _followed(path: Path) -> Directory:
    """A directory that the user has named."""
    return Directory(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), str(path), _LABEL)


@contextlib.contextmanager
def _place(root: Directory, *, archived: bool, make: bool = False) -> Iterator[Directory]:
    """Where conversations stand. Raises FileNotFoundError where there is no archive, and none is to be made."""
    if not archived:
        yield root
        return
    with root.make(ARCHIVE) if make else root.sub(ARCHIVE) as archive:
        yield archive


def sweep(root: Directory, conversation: int) -> None:
    """Remove what an export of this conversation has left that was killed."""
    for archived in (False, True):
        with contextlib.suppress(FileNotFoundError, Strange), _place(root, archived=archived) as place:
            for name in place.names():
                if not place.is_directory(name):
                    continue
                left = _LEFT.fullmatch(name)
                if left is not None and left[1] == str(conversation):
                    place.remove_tree(name)
                elif conversation_id(name) == conversation:
                    with place.sub(name) as directory:
                        _sweep_files(directory)


def _sweep_files(directory: Directory) -> None:
    for name in directory.names():
        left = _LEFT.fullmatch(name)
        if left is not None and left[1] in {METADATA, BASE_CONFIG, EVENTS}:
            directory.unlink(name)


def make(root: Directory, name: str, conversation: int, files: Mapping[str, bytes], *, archived: bool) -> None:
    """A new conversation's directory, in one rename: JP removes incomplete ones."""
    with _place(root, archived=archived, make=True) as place:
        beside = f".{conversation}.{secrets.token_hex(8)}.tmp"
        try:
            with place.make(beside) as directory:
                for file, text in files.items():
                    _put(directory, file, text)
                directory.sync()
            place.rename(beside, name)
        except BaseException:
            with contextlib.suppress(OSError, Strange):
                place.remove_tree(beside)
            raise
        place.sync()


def update(root: Directory, name: str, files: Mapping[str, bytes], *, archived: bool) -> None:
    """Put files in the place of those of a conversation."""
    with _place(root, archived=archived) as place, place.sub(name) as directory:
        for file, text in files.items():
            _put(directory, file, text)
        directory.sync()


def _put(directory: Directory, name: str, text: bytes) -> None:
    """In one rename, with the mode that the file has, or that a new one would get."""
    directory.replace(name, [pretty(text)], mode=directory.mode(name), beside=directory)


def move(root: Directory, there: JpChat, name: str, *, archived: bool) -> None:
    """Give a conversation's directory another name or place. Raises FileExistsError."""
    if there.archived != archived:
        _move_own(Path(root.shown), there.conversation, archived=archived)
    _move(root, there.path.name, name, archived=(there.archived, archived))


def _move_own(conversations: Path, conversation: int, *, archived: bool) -> None:
    """Give the copy in the user's storage, if there is one, the same place."""
    own = user_storage(conversations)
    if own is None or not (own / CONVERSATIONS).is_dir():
        return
    with _followed(own / CONVERSATIONS) as root:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError), _place(root, archived=not archived) as place:
            names = [name for name in place.directories() if conversation_id(name) == conversation]
        for name in names:
            _move(root, name, name, archived=(not archived, archived))


def _move(root: Directory, name: str, to: str, *, archived: tuple[bool, bool]) -> None:
    before, after = archived
    with _place(root, archived=before) as source, _place(root, archived=after, make=True) as target:
        if target.exists(to):
            raise FileExistsError(errno.EEXIST, "in the way: move it elsewhere", f"{target.shown}/{to}")
        source.move(name, target, to)
        target.sync()
        source.sync()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of a descriptor names `path` instead."""
    try:
        yield
    except OSError as error:
        if str(error.filename).startswith("/proc/self/fd/"):
            error.filename = str(path)
            error.filename2 = None
        raise
