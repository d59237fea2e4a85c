r"""A disk that can lose its power: it records what is done to a directory, and builds what a power cut may leave of it.

What may be left, after POSIX fsync(2) ("the system shall transfer the data to the storage device; nothing else is
promised"), Linux's ext4 documentation (data=ordered, delayed allocation), and Pillai et al., "All File Systems Are Not
Created Equal" (ALICE), OSDI '14, section 3, whose point is not to rely on more than is promised:

* **Bytes** written to a file are there for certain only after an fsync or fdatasync of that file, or a syncfs. Until
  then every sector of 512 bytes has, independently of all others, what it had after any one of the writes that aren't
  synced yet, or what it had before. A sector that was never written is NUL bytes (not somebody else's bytes:
  data=ordered and unwritten extents see to that).
* **A file's size** (the metadata) is what it was after any one of the changes that aren't synced yet.
* **A name** (made, renamed, linked, removed) is durable after an fsync of its directory, not with an fsync of the file.
  Until then a prefix of the directory's changes is there: journals keep their order within a directory, not across
  directories. rename(2) within a directory is one change; across directories the target has it where the source has.
* Directories are files: one whose own name is lost is lost with all that is in it.

What is not simulated: a disk that lies about a flush, and sectors torn within (disks write them whole).

`PowerCut` is the recording System; `states` and `build` make directories of its recording. Times are counted in
operations (`moment`). Concurrency: a lock, since the store works in threads.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from store import durability

SECTOR = 512
Where = str | bytes | Path


@dataclass(eq=False)
class Node:
    """A file, a symbolic link or a directory, with all that ever happened to it."""

    is_dir: bool = False
    target: bytes | None = None
    writes: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(Moment, offset, bytes); a truncation has the offset -1 - size."""
    changes: list[tuple[int, str, Node | None, Move | None]] = field(default_factory=list)
    """Of a directory: (moment, name, what it names now, the rename across directories that this is half of)."""
    syncs: list[int] = field(default_factory=list)
    """When it was synced."""
    syncs_begun: list[int] = field(default_factory=list)

    def stable(self, cut: int) -> int:
        """Up to which moment all is on the disk for certain, at `cut`."""
        return max((begun for begun, done in zip(self.syncs_begun, self.syncs, strict=True) if done <= cut), default=0)


@dataclass(eq=False)
class Move:
    """A rename from one directory to another."""

    source: Node
    target: Node
    moment: int


class PowerCut(durability.System):
    """Does what it is told, and records it. Only what happens below `root` counts; nothing is really synced.

    What is in `root` already is durable.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._lock = threading.RLock()
        self.root = Node(is_dir=True)
        self._tree: dict[bytes, Node] = {self._root: self.root}
        self._numbers: dict[int, Node] = {os.stat(root).st_ino: self.root}
        self.moment = 0
        self.labels: list[str] = [""]
        for path in sorted(root.rglob("*")):
            stat = path.lstat()
            node = self._numbers.get(stat.st_ino)
            if node is None:
                node = Node(is_dir=path.is_dir() and not path.is_symlink())
                if path.is_symlink():
                    node.target = os.fsencode(path.readlink())
                elif not node.is_dir:
                    node.writes.append((0, 0, path.read_bytes()))
                self._numbers[stat.st_ino] = node
            self._name(os.fsencode(path), node)

    # ---- what is where now

    def _tick(self, label: str) -> int:
        self.moment += 1
        self.labels.append(label)
        return self.moment

    @staticmethod
    def _path(path: Where) -> bytes:
        return os.path.abspath(os.fsencode(path))

    def _parent(self, path: bytes) -> tuple[Node, str]:
        parent, name = os.path.split(path)
        return self._tree[parent], os.fsdecode(name)

    def _name(self, path: bytes, node: Node | None, move: Move | None = None) -> None:
        parent, name = self._parent(path)
        parent.changes.append((self.moment, name, node, move))
        if node is None:
            self._tree.pop(path, None)  # a socket's name wasn't recorded
        else:
            self._tree[path] = node

    def _of(self, fd: int) -> Node | None:
        stat = os.fstat(fd)
        return self._numbers.get(stat.st_ino) if stat.st_nlink else None

    def _made(self, path: bytes, node: Node) -> None:
        self._numbers[os.lstat(path).st_ino] = node
        self._name(path, node)

    # ---- the calls

    def open(self, label: str, path: str | Path, flags: int) -> int:
        with self._lock:
            full = self._path(path)
            fd = super().open(label, path, flags)
            if full not in self._tree and flags & os.O_CREAT:
                self._tick(label)
                self._made(full, Node())
            elif flags & os.O_TRUNC:
                self._write(label, fd, -1, b"")
            return fd

    def _write(self, label: str, fd: int, offset: int, data: bytes | memoryview) -> None:
        node = self._of(fd)
        if node is not None:
            node.writes.append((self._tick(label), offset, bytes(data)))

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        with self._lock:
            done = super().write(label, fd, data)
            self._write(label, fd, os.lseek(fd, 0, os.SEEK_CUR) - done, data[:done])
            return done

    def pwrite(self, label: str, fd: int, data: bytes | memoryview, offset: int) -> int:
        with self._lock:
            done = super().pwrite(label, fd, data, offset)
            self._write(label, fd, offset, data[:done])
            return done

    def ftruncate(self, label: str, fd: int, size: int) -> None:
        with self._lock:
            super().ftruncate(label, fd, size)
            self._write(label, fd, -1 - size, b"")

    def _sync(self, label: str, fd: int) -> None:
        with self._lock:
            node = self._of(fd)
            begun = self.moment
            done = self._tick(label)
            if node is not None:
                node.syncs_begun.append(begun)
                node.syncs.append(done)

    def fsync(self, label: str, fd: int) -> None:
        self._sync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self._sync(label, fd)

    def syncfs(self, label: str, fd: int) -> None:
        with self._lock:
            begun = self.moment
            done = self._tick(label)
            for node in {*self._tree.values()}:
                node.syncs_begun.append(begun)
                node.syncs.append(done)

    def rename(self, label: str, source: str | Path, target: str | Path) -> None:
        with self._lock:
            super().rename(label, source, target)
            here, there = self._path(source), self._path(target)
            node = self._tree[here]
            if here == there or self._tree.get(there) is node:
                return
            self._tick(label)
            from_dir, _ = self._parent(here)
            to_dir, _ = self._parent(there)
            move = Move(from_dir, to_dir, self.moment) if from_dir is not to_dir else None
            below = [(path, found) for path, found in self._tree.items() if path.startswith(here + b"/")]
            for path, _ in below:
                del self._tree[path]
            self._name(there, node, move)
            self._name(here, None, move)
            for path, found in below:
                self._tree[there + path[len(here) :]] = found

    def link(self, label: str, source: str | Path, target: str | Path) -> None:
        with self._lock:
            super().link(label, source, target)
            self._tick(label)
            self._name(self._path(target), self._tree[self._path(source)])

    def unlink(self, label: str, path: Where) -> None:
        with self._lock:
            super().unlink(label, path)
            self._tick(label)
            self._name(self._path(path), None)

    def unlink_in(self, label: str, directory: int, path: str) -> None:
        with self._lock:
            super().unlink_in(label, directory, path)
            self._tick(label)
            self._name(self._path(path), None)

    def rmdir_in(self, label: str, directory: int, path: str) -> None:
        with self._lock:
            super().rmdir_in(label, directory, path)
            self._tick(label)
            self._name(self._path(path), None)

    def mkdir(self, label: str, path: str | Path) -> None:
        with self._lock:
            super().mkdir(label, path)
            self._tick(label)
            self._made(self._path(path), Node(is_dir=True))

    def rmdir(self, label: str, path: str | Path) -> None:
        with self._lock:
            super().rmdir(label, path)
            self._tick(label)
            self._name(self._path(path), None)

    def symlink(self, label: str, target: str | bytes, path: Where) -> None:
        with self._lock:
            super().symlink(label, target, path)
            self._tick(label)
            self._made(self._path(path), Node(target=os.fsencode(target)))


# ---- what may be left


class Choice:
    """Which of the changes that weren't synced are there: asked for each directory, size and sector."""

    def prefix(self, count: int) -> int:
        """How many of a directory's `count` changes."""
        raise NotImplementedError

    def size(self, count: int) -> int:
        """After how many of a file's `count` writes its size is."""
        raise NotImplementedError

    def sector(self, count: int) -> int:
        """After how many of them a sector is."""
        raise NotImplementedError


class Fixed(Choice):
    """All or nothing of names, sizes and bytes."""

    def __init__(self, *, names: bool, sizes: bool, data: bool) -> None:
        self._names, self._sizes, self._data = names, sizes, data

    def prefix(self, count: int) -> int:
        return count if self._names else 0

    def size(self, count: int) -> int:
        return count if self._sizes else 0

    def sector(self, count: int) -> int:
        return count if self._data else 0

    def __repr__(self) -> str:
        return f"names={self._names} sizes={self._sizes} data={self._data}"


EXTREMES = [Fixed(names=bool(bits & 1), sizes=bool(bits & 2), data=bool(bits & 4)) for bits in range(8)]


class Drawn(Choice):
    """By a seeded generator: mostly all or nothing, so that the extremes of different things meet."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._random = random.Random(seed)

    def _draw(self, count: int) -> int:
        return self._random.choice((0, count, self._random.randint(0, count)))

    prefix = size = sector = _draw

    def __repr__(self) -> str:
        return f"drawn with seed {self._seed!r}"


def build(recorded: PowerCut, cut: int, choice: Choice, target: Path) -> None:
    """Make in `target`, which doesn't exist, what is there where the power was cut after operation `cut`."""
    prefixes = _Prefixes(recorded.root, cut, choice)
    made: dict[Node, Path] = {}

    def make(node: Node, path: Path) -> None:
        if node in made and not node.is_dir:
            os.link(made[node], path, follow_symlinks=False)
            return
        made[node] = path
        if node.target is not None:
            path.symlink_to(os.fsdecode(node.target))
        elif node.is_dir:
            path.mkdir(mode=0o700)
            for name, child in prefixes.names(node).items():
                make(child, path / name)
        else:
            path.touch(mode=0o600)
            path.write_bytes(_content(node, cut, choice))

    make(recorded.root, target)


class _Prefixes:
    """How much of each directory's changes is there; a rename across directories is in both or in none."""

    def __init__(self, root: Node, cut: int, choice: Choice) -> None:
        self._until: dict[Node, int] = {}
        moves = self._choose(root, cut, choice)
        while any(self._tie(move) for move in moves if move.moment <= cut):
            pass

    def _choose(self, root: Node, cut: int, choice: Choice) -> list[Move]:
        """Each directory by itself; returns the renames that tie two together."""
        moves: list[Move] = []
        pending = [root]
        while pending:
            node = pending.pop()
            if node in self._until:
                continue
            stable = node.stable(cut)
            loose = [moment for moment, *_ in node.changes if stable < moment <= cut]
            kept = choice.prefix(len(loose))
            self._until[node] = loose[kept - 1] if kept else stable
            for _, _, child, move in node.changes:
                if child is not None and child.is_dir:
                    pending.append(child)
                if move is not None:
                    moves.append(move)
        self._stable = {node: node.stable(cut) for node in self._until}
        return moves

    def _tie(self, move: Move) -> bool:
        """Let both directories have the rename, or none; whether that changed anything."""
        source, there = self._until[move.source], self._until[move.target]
        if (source >= move.moment) == (there >= move.moment):
            return False
        if move.moment <= max(self._stable[move.source], self._stable[move.target]):
            # What is synced in one is in the journal, and so in the other.
            self._until[move.source] = max(source, move.moment)
            self._until[move.target] = max(there, move.moment)
        else:
            self._until[move.source] = min(source, move.moment - 1)
            self._until[move.target] = min(there, move.moment - 1)
        return True

    def names(self, node: Node) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for moment, name, child, _ in node.changes:
            if moment <= self._until[node]:
                if child is None:
                    found.pop(name, None)
                else:
                    found[name] = child
        return found


def _content(node: Node, cut: int, choice: Choice) -> bytes:
    stable = node.stable(cut)
    versions = [bytearray()]
    for moment, offset, data in node.writes:
        if moment > cut:
            break
        new = versions[-1] if moment <= stable else bytearray(versions[-1])
        if offset < 0:
            size = -1 - offset
            del new[size:]
            new += bytes(size - len(new))
        else:
            new += bytes(max(0, offset - len(new)))
            new[offset : offset + len(data)] = data
        if moment > stable:
            versions.append(new)
    loose = len(versions) - 1
    if not loose:
        return bytes(versions[0])
    size = len(versions[choice.size(loose)])
    content = bytearray(size)
    for start in range(0, size, SECTOR):
        end = min(size, start + SECTOR)
        chosen = versions[choice.sector(loose)][start:end]
        content[start : start + len(chosen)] = chosen
    return bytes(content)


def states(last: int, cuts: int, each: int, exhaustive: int, rng: random.Random) -> Iterator[tuple[int, Choice]]:
    """Cuts to be tried: `cuts` places drawn, `each` drawn states of them; all extremes at the `exhaustive` last places.

    The states with everything or nothing that isn't synced are tried at every drawn place.
    """
    for cut in sorted(rng.sample(range(1, last + 1), min(cuts, last))):
        yield cut, EXTREMES[0]
        yield cut, EXTREMES[-1]
        for number in range(each):
            yield cut, Drawn(f"{rng.random()} {number}")
    for cut in range(max(1, last + 1 - exhaustive), last + 1):
        for choice in EXTREMES:
            yield cut, choice
