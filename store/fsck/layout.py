"""Check what belongs to the store as a whole: documents, drafts, quarantine, and what doesn't belong there at all.

Concurrency: for any thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import orjson

from store import durability
from store.drivers.file import aside
from store.drivers.file import format as store_format
from store.drivers.file.kv import file_name
from store.drivers.file.objects import Objects
from store.drivers.keys import check_key
from store.errors import BlobNotFound, CorruptBlob, InvalidName
from store.fsck.context import RESTORE, Context, is_old, locked, reason
from store.fsck.findings import counted
from store.fsck.spaces import check_directory
from store.index.database import NAME as INDEX
from store.model import Digest, is_uuid

TOP: Final = store_format.KNOWN | {INDEX, *(f"{INDEX}{suffix}" for suffix in ("-wal", "-shm", "-journal", ".bad"))}
_NAMES: Final = ("names,", "~")
"""How the documents' files begin that say who has a workspace's name; no other key is too long to be a file's name."""
_BESIDE_STORES: Final = frozenset({"lost+found"})
_IN_OBJECTS: Final = frozenset({"announced", *(f"{number:02x}" for number in range(256))})
_CHUNK: Final = re.compile(r"[0-9a-f-]{36}\.[0-9]+\.[0-9]+")
_LABEL: Final = re.compile(r"[0-9a-f-]{36}\.json")


class LayoutCheck:
    """Checks the store's own files."""

    def __init__(self, context: Context, objects: Objects) -> None:
        self._context = context
        self._objects = objects

    def check(self) -> None:
        """All of it."""
        context = self._context
        context.check_mode(context.root, context.root.lstat())
        check_directory(context, context.root, TOP | _BESIDE_STORES, "")
        self._check_documents()
        self._check_drafts()
        self._count_quarantine()
        objects = context.root / "objects"
        if objects.is_dir() and not objects.is_symlink():
            check_directory(context, objects, _IN_OBJECTS, "")

    # ---- kv

    def _check_documents(self) -> None:
        for path in self._paths("kv"):
            if path.name.endswith(".json") and not path.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    self._context.check_mode(path, path.lstat())
                problem = self._document_problem(path)
                if problem and path.name.startswith(_NAMES):
                    # The workspaces' logs say what they are called: without the document they are asked.
                    fix = functools.partial(self._put_aside, path)
                    self._context.warning("document", problem, path, fix=fix)
                elif problem:
                    self._context.error("document", problem, path, advice=RESTORE)
            else:
                self._leftover(path)

    def _put_aside(self, path: Path) -> str:
        """Move a document to quarantine, under the lock that writers of documents hold."""
        context, lock = self._context, path.parent / ".lock"
        os.close(durability.system.open("kv.lock", lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
        with locked(lock):
            problem = self._document_problem(path)
            if not problem:
                return "it is whole by now"
            note = {"why": f"the document {problem}"}
            pieces = [context.content(path)]
            kept = aside.keep(context.root, context.relative(path), pieces, note, context.now(), suffix="document")
            durability.system.unlink("kv.quarantine", path)
            durability.fsync_dir("kv.quarantine", path.parent)
        return f"moved to quarantine/{kept}; the workspace's log says what it is called"

    def _document_problem(self, path: Path) -> str:
        """Empty, or what is wrong with it."""
        try:
            found = orjson.loads(self._context.content(path))
            key, etag, value = found["key"], found["etag"], found["value"]
            check_key(key)
            if path.name.startswith(_NAMES) and not is_uuid(value["id"]):
                return "names no workspace"
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"can't be read: {reason(error)}"
        except (ValueError, KeyError, TypeError, InvalidName):
            return "is no document"
        if not isinstance(etag, str) or file_name(key) != path.name:
            return f"is the document {key!r} under another's name"
        return ""

    # ---- drafts

    def _check_drafts(self) -> None:
        paths = self._paths("drafts")
        labels = {path.name.partition(".")[0] for path in paths if _LABEL.fullmatch(path.name)}
        for path in paths:
            if _LABEL.fullmatch(path.name):
                self._check_label(path)
            elif _CHUNK.fullmatch(path.name):
                if path.name.partition(".")[0] not in labels:
                    self._leftover(path)
            else:
                self._leftover(path)

    def _check_label(self, path: Path) -> None:
        context = self._context
        try:
            fd = context.open(path)
        except FileNotFoundError:
            return  # committed just now
        except OSError as error:
            context.warning("draft", f"can't be read: {reason(error)}", path, advice="move it elsewhere")
            return
        with os.fdopen(fd, "rb") as file:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # its process lives
            context.check_mode(path, os.fstat(fd))
            data = file.read(1 << 20)
            if not os.fstat(fd).st_nlink:
                return
        try:
            found = orjson.loads(data)
            label, base = found["label"], found["base"]
            int(found["limit"]), int(found["size"])
        except (ValueError, KeyError, TypeError):
            if data.strip() and is_old(path.lstat()):
                context.error("draft", "its label can't be read: what it was for isn't known", path, advice=RESTORE)
            return
        if base is not None and not self._is_there(str(base)):
            what = f"is based on {base}, which is missing: only what was written anew is left"
            context.error("draft", what, path, advice="restore objects/ from a backup")
        elif isinstance(label, dict):
            what = f"is a save of {label.get('name')!r} that a crash interrupted"
            context.info("draft", what, path, advice="the next mount brings it back as a .recovered file")

    def _is_there(self, digest: str) -> bool:
        try:
            return self._objects.has(self._objects.manifest(Digest(digest)))
        except (BlobNotFound, CorruptBlob):
            return False

    # ---- the rest

    def _count_quarantine(self) -> None:
        paths = self._paths("quarantine")
        kept = [path for path in paths if path.suffix != ".json"]
        size = 0
        for path in kept:
            with contextlib.suppress(OSError):
                size += path.lstat().st_size
        if kept:
            what = f"has {counted(len(kept), 'file')} of {counted(size, 'byte')} that couldn't stay in place"
            self._context.info("quarantine", what, self._context.root / "quarantine")

    def _leftover(self, path: Path) -> None:
        context = self._context
        if path.name == ".lock":
            return
        with contextlib.suppress(FileNotFoundError):
            if path.is_symlink():
                context.warning("stranger", "is a symbolic link, which chatfs never follows", path, advice="remove it")
            elif path.name.startswith(".") or _CHUNK.fullmatch(path.name):
                if is_old(path.lstat()):
                    context.info("leftover", "was left by a crash", path, advice="chatfs gc removes it")
            else:
                context.warning("stranger", "isn't chatfs's", path, advice="move it elsewhere")

    def _paths(self, name: str) -> list[Path]:
        directory = self._context.root / name
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.close(fd)
            return sorted(directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._context.error("unreadable", f"can't be listed: {reason(error)}", directory, advice=RESTORE)
            return []


def claimed_twice(names: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """The names that several workspaces have; `names` are (name, workspace's id)."""
    by_name: dict[str, list[str]] = {}
    for name, workspace in names:
        by_name.setdefault(name, []).append(workspace)
    return [(name, ids) for name, ids in sorted(by_name.items()) if len(ids) > 1]
