"""Bring a store of an older format to the present one, step by step; each step can be interrupted anywhere.

A step names the files that it changes. They are put into `backup/` first, then the step changes them one by one, and
then, as the point from which on the store has the next format, `store.json` is replaced:

1. `backup/format-1-<time>.partial` gets a copy of each (a hard link where that is possible), and a README. When that is
   on the disk, it is renamed to `.unfinished`. A partial backup is worth nothing: whoever finds one begins anew.
2. The files are changed. Whoever finds an unfinished backup goes on from there: what is in it was changed already, or
   is about to be.
3. When that is on the disk, `store.json` gets the new number, and the backup its name without a suffix.

Concurrency: blocks, so for a thread. Who migrates holds the flock of `store.json`; others wait for it. A chatfs that
only knows the old format doesn't take part, as FORMAT.md says.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store import durability, locks
from store.drivers.file import format as store_format
from store.drivers.file.format import BACKUP, DESCRIPTION, FORMAT, Description

Report = Callable[[int, int], None]
"""Told (done, total) while it goes on, (0, 0) while it waits; may raise, to interrupt it."""

_LABEL: Final = "migrate"
_PARTIAL: Final = ".partial"
_UNFINISHED: Final = ".unfinished"
_WAIT_SECONDS: Final = 0.05
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS})
_README: Final = """\
What the store had before it was migrated from format {old} to format {new}, at {when} UTC.

{about}

To go back to format {old}: end every chatfs that uses the store, put what is here back (from this directory:
cp -a {names} ../..), and use the chatfs that you had. That loses nothing, unless a chat was compacted since
(chatfs compact): an older chatfs doesn't see what the compaction has summed up.

Once all is well, this directory can be deleted.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """From one format to the next."""

    about: str
    """What it changes, for the README in the backup."""
    files: Callable[[Path], Iterator[str]]
    """Paths below the store's directory, in the order in which they are to be changed; ordinary files."""
    change: Callable[[Path, str], None]
    """Change one; what was done before an interruption may be asked for again."""


def migrate(root: Path, report: Report) -> None:
    """Bring the store to the present format, or wait until another process has. Raises OSError, FormatError."""
    with _alone(root, report):
        while (found := store_format.require(root)).format < FORMAT:
            _one_step(root, found, report)


def finish(root: Path, present: int) -> None:
    """Name the backups of steps that were interrupted when all but that was done."""
    try:
        names = os.listdir(root / BACKUP)
    except OSError:
        return
    for name in names:
        if name.endswith(_UNFINISHED) and not name.startswith(f"format-{present}-"):
            _name_backup(root / BACKUP / name)


# ---- the lock


@contextlib.contextmanager
def _alone(root: Path, report: Report) -> Iterator[None]:
    while True:
        fd = os.open(root / DESCRIPTION, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            while not locks.try_lock(fd):
                report(0, 0)
                time.sleep(_WAIT_SECONDS)
            if os.fstat(fd).st_nlink:
                yield
                return
        finally:
            os.close(fd)


# ---- one step


def _one_step(root: Path, found: Description, report: Report) -> None:
    step = STEPS[found.format]
    for name in os.listdir(root):
        if name.startswith(f".{DESCRIPTION}."):
            durability.discard(_LABEL, root / name)  # from a replacement that was interrupted
    paths = list(step.files(root))
    total = 2 * len(paths)
    report(0, total)
    backup = _begun(root, found.format)
    if backup is None:
        backup = _begin(root, found, step, paths)
        for done, path in enumerate([DESCRIPTION, *paths]):
            _keep(root, backup, path)
            report(done, total)
        _sync(root)
        backup = _renamed(backup, _UNFINISHED)
        durability.fsync_dir(_LABEL, backup.parent)
    else:
        # The chatfs of before may have written since.
        for done, path in enumerate(paths, 1):
            _keep(root, backup, path)
            report(done, total)
        _sync(root)
    for done, path in enumerate(paths, len(paths) + 1):
        step.change(root, path)
        report(done, total)
    _sync(root)
    durability.atomic_replace(_LABEL, root / DESCRIPTION, found.with_format(found.format + 1))
    _name_backup(backup)


def _sync(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        durability.system.syncfs(_LABEL, fd)
    finally:
        os.close(fd)


# ---- the backup


def _begun(root: Path, number: int) -> Path | None:
    """The whole backup that an interrupted step left; what it left of one that isn't whole is removed."""
    directory = root / BACKUP
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            if name.endswith(_PARTIAL):
                durability.remove_tree(_LABEL, directory / name)
            elif name.endswith(_UNFINISHED) and name.startswith(f"format-{number}-"):
                return directory / name
    return None


def _begin(root: Path, found: Description, step: Step, paths: list[str]) -> Path:
    now = time.gmtime()
    stem = f"format-{found.format}-{time.strftime('%Y%m%dT%H%M%SZ', now)}"
    backup = root / BACKUP / (stem + _PARTIAL)
    number = 1
    while os.path.lexists(backup.with_suffix("")):
        number += 1
        backup = root / BACKUP / f"{stem}-{number}{_PARTIAL}"
    durability.make_dirs(_LABEL, backup, root)
    text = _README.format(
        old=found.format,
        new=found.format + 1,
        when=time.strftime("%Y-%m-%d %H:%M:%S", now),
        about=step.about,
        names=" ".join(sorted({path.partition("/")[0] for path in (DESCRIPTION, *paths)})),
    )
    durability.write_new(_LABEL, backup / "README", text.encode(), durable=False)
    return backup


def _keep(root: Path, backup: Path, path: str) -> None:
    """Put a file into the backup as it is now."""
    source, target = root / path, backup / path
    durability.make_dirs(_LABEL, target.parent, backup)
    if not os.path.lexists(target):
        _link_or_copy(source, target)
    elif not os.path.samefile(source, target):
        beside = durability.temporary(target)
        _link_or_copy(source, beside)
        durability.system.rename(_LABEL, beside, target)


def _link_or_copy(source: Path, target: Path) -> None:
    """Files of a store are replaced, not changed in place, but for logs: a step that changes logs has to copy them."""
    try:
        durability.system.link(_LABEL, source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return
    fd = durability.create(_LABEL, target)
    try:
        with open(source, "rb") as file:
            while piece := file.read(1 << 20):
                durability.write_all(_LABEL, fd, piece)
        durability.system.fsync(_LABEL, fd)
    except BaseException:
        durability.discard(_LABEL, target)
        raise
    finally:
        os.close(fd)
    shutil.copystat(source, target)


def _renamed(backup: Path, suffix: str) -> Path:
    target = backup.with_suffix(suffix)
    durability.system.rename(_LABEL, backup, target)
    return target


def _name_backup(backup: Path) -> None:
    """The step is done; of several processes that see that, one is first."""
    with contextlib.suppress(FileNotFoundError):
        _renamed(backup, "")
        durability.fsync_dir(_LABEL, backup.parent)


# ---- the steps


def _published_texts(root: Path) -> Iterator[str]:
    """The rendered texts and the notes that say what they are: the text first, which without its note isn't found."""
    for workspace in _directories(root, "workspace"):
        for chat in _directories(root, f"{workspace}/chats"):
            note = f"{chat}/history.md.json"
            if _is_file(root / note):
                if _is_file(root / f"{chat}/history.md"):
                    yield f"{chat}/history.md"
                yield note


def _directories(root: Path, under: str) -> list[str]:
    try:
        with os.scandir(root / under) as entries:
            return sorted(f"{under}/{each.name}" for each in entries if each.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _remove(root: Path, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        durability.system.unlink(_LABEL, root / path)


STEPS: Final[dict[int, Step]] = {
    1: Step(
        "Only store.json was changed. The chats' rendered texts (history.md, with history.md.json) were removed, since "
        "their\nnotes have other fields in format 2; they come back when somebody reads them.",
        _published_texts,
        _remove,
    )
}
"""By the format that they begin with."""
