"""Check what was made from the logs: snapshots, the rendered text, the index. All of it can be dropped and comes back.

A snapshot, a rendered text and the index each say which entry of the log they were made at, and the log's crc there. So
where their own checksums hold and that crc is the log's, they are what chatfs made of this very log. A `full` check
doesn't take chatfs's word for it, and compares with a fold of the log.

Concurrency: for any thread, one space at a time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson

from store import durability
from store.drivers.file.tail import ORIGIN
from store.drivers.file.text import LOG_NAME
from store.errors import CorruptSnapshot
from store.fold import ChatState
from store.fsck import logs
from store.fsck.context import Context, is_old, keep_copies, reason
from store.history import render_pieces
from store.index import database, schema
from store.kinds import CHAT, WORKSPACE
from store.model import Entry, Seq, SpaceId
from store.snapshots import DIRECTORY, PART, Found, Snapshots

NOTE: Final = "history.md.json"
TEXT: Final = "history.md"
_AGAIN: Final = "it is made again when it is needed"


def wanted(root: Path, space: SpaceId) -> set[int]:
    """The seqs at which something of the space was made."""
    snapshots = Snapshots(CHAT, lambda: root / space, writable=False)
    found = {int(seq) for seq in snapshots.seqs()}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found.add(int(orjson.loads((root / space / NOTE).read_bytes())["seq"]))
    return found


class DerivedCheck:
    """Checks what was made from one space's log."""

    def __init__(
        self, context: Context, space: SpaceId, where: str, checked: logs.Checked, made_at: Collection[int]
    ) -> None:
        """`made_at`: what `wanted` said before the log was read: what was made since is left alone."""
        self._context = context
        self._made_at = made_at
        self._space = space
        self._where = where
        self._checked = checked
        self._directory = context.root / space
        self._is_chat = "/chats/" in space
        self._kind: Any = CHAT if self._is_chat else WORKSPACE

    def check(self) -> None:
        """All of it."""
        self._check_snapshots()
        text_is_good = self._check_text()
        if self._context.full and self._checked.complete:
            self._compare(with_text=text_is_good)

    def _fits(self, seq: int, crc: int | None) -> str:
        """Empty, or why something that was made at an entry isn't of this log."""
        checked = self._checked
        if seq > checked.seq:
            return f"was made at entry {seq}, but the log ends at {checked.seq}"
        found = checked.crcs.get(seq)
        if crc is not None and found is not None and found != crc:
            return f"was made of another log that had an entry {seq}"
        return ""

    # ---- snapshots

    def _check_snapshots(self) -> None:
        context, directory = self._context, self._directory / DIRECTORY
        snapshots = self._snapshots()
        seqs = set(snapshots.seqs())
        for seq in sorted(seqs & set(self._made_at)):
            problem = self._snapshot_problem(snapshots, seq)
            path = directory / f"{seq}.json"
            if problem and path.exists():
                fix = functools.partial(self._drop, seq)
                context.warning("snapshot", f"the snapshot {problem}", path, self._where, advice=_AGAIN, fix=fix)
        self._check_strangers(directory, {str(seq) for seq in snapshots.seqs()} | {str(seq) for seq in seqs})

    def _snapshots(self) -> Snapshots[Any]:
        return Snapshots(self._kind, lambda: self._directory)

    def _snapshot_problem(self, snapshots: Snapshots[Any], seq: Seq) -> str:
        try:
            found = snapshots.find(seq)
            problem = self._fits(seq, found.crc)
            if problem:
                return problem
            with contextlib.closing(found.open()) as source:
                self._kind.load(found.head["state"], source)
                for offset in range(0, found.head["text"]["size"], PART):
                    self._context.read(len(source.text(offset, PART)))
                self._context.read(len(source.items()))
        except CorruptSnapshot as error:
            return f"can't be loaded: {str(error).removeprefix(f'{snapshots.directory}/')}"
        return ""

    def _drop(self, seq: Seq) -> str:
        if seq > self._checked.seq:
            # It knows more than the log: that isn't made again.
            stem = self._directory / DIRECTORY / str(seq)
            keep_copies(self._context, [stem.with_suffix(suffix) for suffix in (".json", ".items", ".md")])
            return "moved to quarantine/"
        self._snapshots().discard(seq)
        return "removed"

    def _check_strangers(self, directory: Path, known: set[str]) -> None:
        try:
            paths = sorted(directory.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            self._context.warning("unreadable", f"can't be listed: {reason(error)}", directory, self._where)
            return
        for path in paths:
            stem, _, suffix = path.name.partition(".")
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if suffix in {"json", "items", "md"} and stem.isdigit():
                    self._context.check_mode(path, status, self._where)
                    if stem not in known and is_old(status):
                        self._context.info("leftover", "was left by a crash", path, self._where, advice=_AGAIN)
                elif not (path.name.startswith(".") and not is_old(status)):
                    self._context.warning("stranger", "isn't chatfs's", path, self._where, advice="move it elsewhere")

    # ---- the rendered text

    def _check_text(self) -> bool:
        """Whether there is one, and it is what the note beside it says."""
        context, note = self._context, self._directory / NOTE
        text = self._directory / TEXT
        if not os.path.lexists(note) and not os.path.lexists(text):
            return False
        problem, path = self._text_problem(note, text)
        if problem:
            context.warning("text", problem, path, self._where, advice=_AGAIN, fix=lambda: _remove(text, note))
        return not problem

    def _text_problem(self, note: Path, text: Path) -> tuple[str, Path]:
        try:
            said = orjson.loads(self._context.content(note, 65536))
            seq, size, digest = int(said["seq"]), int(said["size"]), str(said["sha256"])
            crc = said.get("crc")
        except FileNotFoundError:
            # It is written second.
            return "nothing says which entry this text was rendered at", text
        except (OSError, ValueError, KeyError, TypeError):
            return "can't be read", note
        problem = self._fits(seq, crc)
        if problem:
            return (f"the text {problem}", text) if seq in self._made_at else ("", text)
        try:
            fd = self._context.open(text)
        except OSError as error:
            return f"can't be read: {reason(error)}", text
        found = hashlib.sha256()
        length = 0
        with os.fdopen(fd, "rb", buffering=0) as file:
            while piece := file.read(PART):
                found.update(piece)
                length += len(piece)
                self._context.read(len(piece))
        if length != size or found.hexdigest() != digest:
            return "isn't the text that was rendered", text
        return "", text

    # ---- a full check

    def _compare(self, *, with_text: bool) -> None:
        """Fold the log, and compare what was made at its entries with what it was at them."""
        snapshots = self._snapshots()
        made: dict[int, Found] = {}
        for seq in snapshots.seqs():
            with contextlib.suppress(CorruptSnapshot):
                made[int(seq)] = snapshots.find(seq)
        note = self._noted() if with_text else None
        state = self._kind.make()
        if self._checked.truncated_at:
            return  # it begins at a state that nothing here can be compared with
        for entry in self._entries():
            state.apply(entry)
            found = made.get(entry.seq)
            if found is not None and self._kind.dump(state).state != found.head["state"]:
                path = self._directory / DIRECTORY / f"{entry.seq}.json"
                what = "the snapshot isn't what the log says: please report this"
                fix = functools.partial(self._drop, entry.seq)
                self._context.warning("snapshot", what, path, self._where, fix=fix)
            if note is not None and note[0] == entry.seq and isinstance(state, ChatState):
                self._compare_text(state, note[1])

    def _noted(self) -> tuple[int, str] | None:
        try:
            said = orjson.loads((self._directory / NOTE).read_bytes())
            return int(said["seq"]), str(said["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _compare_text(self, state: ChatState, digest: str) -> None:
        found = hashlib.sha256()
        for piece in render_pieces(state):
            found.update(piece)
        if found.hexdigest() != digest:
            text, note = self._directory / TEXT, self._directory / NOTE
            what = "isn't what the log renders"
            self._context.warning("text", what, text, self._where, advice=_AGAIN, fix=lambda: _remove(text, note))

    def _entries(self) -> Iterator[Entry]:
        fd = self._context.open(self._directory / LOG_NAME)
        try:
            yield from entries(fd, self._checked.end)
        finally:
            os.close(fd)


def entries(fd: int, end: int) -> Iterator[Entry]:
    """The entries of a log's text as far as they are whole, from its beginning."""
    from store import codec  # noqa: PLC0415 - not every check decodes

    seq, crc = ORIGIN.seq, ORIGIN.crc
    for text in logs.pieces(fd, 0, end):
        found, damage = codec.decode(text, after=Seq(seq), previous_crc=crc)
        yield from found
        if damage is not None:
            return
        seq, crc = found[-1].seq, found[-1].crc


def _remove(*paths: Path) -> str:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            durability.system.unlink("rendered.drop", path)
    return "removed"


# ---- the index


def check_index(context: Context, heads: Iterable[tuple[SpaceId, int, int]]) -> None:
    """Whether index.db is whole, and says of no log what it doesn't say. `heads`: (space, seq, crc) of sound logs."""
    path = context.root / database.NAME
    if not os.path.lexists(path):
        return
    problem = ""
    try:
        os.close(context.open(path))
        problem = _looked(path, list(heads))
    except OSError as error:
        problem = f"can't be read: {reason(error)}"
    except sqlite3.Error as error:
        if "locked" in str(error):
            return  # somebody works on it: it is looked at by them
        problem = f"is damaged: {error}"
    if problem:
        context.warning("index", problem, path, advice=_AGAIN, fix=lambda: _drop_index(path))


def _looked(path: Path, heads: Iterable[tuple[SpaceId, int, int]]) -> str:
    """What is wrong with it. Raises sqlite3.Error."""
    try:
        return _looked_as(path, "mode=ro", heads)
    except sqlite3.OperationalError:
        if os.access(path.parent, os.W_OK):
            raise
    # A file with a write-ahead log can't be opened in a directory that can't be written, unless it is said to be still.
    problem = _looked_as(path, "immutable=1", heads)
    # It is read without what its write-ahead log has, and may need that to make sense.
    wal = path.with_name(path.name + "-wal")
    return "" if wal.exists() and wal.stat().st_size else problem


def _looked_as(path: Path, mode: str, heads: Iterable[tuple[SpaceId, int, int]]) -> str:
    with contextlib.closing(
        sqlite3.connect(f"file:{quote(os.fsencode(path))}?{mode}", uri=True, timeout=5, isolation_level=None)
    ) as connection:
        return _index_problem(connection, heads)


def _index_problem(connection: sqlite3.Connection, heads: Iterable[tuple[SpaceId, int, int]]) -> str:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != schema.APPLICATION:
        return "is no index of chatfs"
    if version != schema.VERSION:
        return ""  # it is built anew anyway
    (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if said != "ok":
        lines = [line for line in said.splitlines() if not line.startswith("***")]  # a heading
        return f"is damaged: {'; '.join(lines)}"
    # One transaction, so that what it says of all logs is of one moment, before they were read.
    for space, seq, crc in heads:
        row = connection.execute("SELECT seq, crc FROM spaces WHERE space = ?", (space,)).fetchone()
        if row is not None and row[0] == seq and row[1] != crc:
            return f"was made of another log of {space}"
    return ""


def _drop_index(path: Path) -> str:
    database.put_aside(path, keep=False)
    return "removed"
