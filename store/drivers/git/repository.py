"""A repository that has a store in it: found, checked, made.

What is chatfs's there: the refs `refs/chatfs/*`, the directory `chatfs`, and one line in `objects/info/alternates`.
`chatfs/store.json` is {"format": 1, "id": UUID}; README.md beside this says what the number means.

Concurrency: for a thread. Several processes may make a store at once.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import uuid
from pathlib import Path
from typing import Final

import orjson
import pygit2

from store import durability
from store.driver import Access
from store.drivers.git.refs import Refs, replace_gits
from store.errors import FormatError, ReadOnly, StoreFailed, StoreNotFound

FORMAT: Final = 1
DIRECTORY: Final = "chatfs"
ODB: Final = "odb"
DESCRIPTION: Final = "store.json"
_ALTERNATE: Final = f"../{DIRECTORY}/{ODB}"

# Of a partial clone nothing is expected but that objects may be missing, as anywhere.
pygit2.settings.set_extensions(["partialclone"])


def prepare(path: Path, access: Access) -> tuple[Path, bool, bool]:
    """The directory with the repository's refs, whether it is opened read-only, and whether a store was made.

    Raises FormatError, StoreNotFound, ReadOnly, BackendError.
    """
    git = _find(path)
    if git is None:
        if access not in {Access.MAKE, Access.MAKE_INSIDE}:
            raise StoreNotFound(f"there is no repository at {path}: git init --bare makes one")
        if access is Access.MAKE_INSIDE and not path.parent.is_dir():
            raise StoreNotFound(
                f"there is no repository at {path}, nor a directory {path.parent} to make one in: name another, or "
                "make that directory"
            )
        with durability.failing(f"making a repository at {path}"):
            _make_repository(path)
        git = _find(path)
        if git is None:
            raise StoreFailed(f"the repository at {path} was removed while it was being made: try again")
    _check_repository(git)
    described = _read_description(git)
    has_logs = described or Refs(git).any()
    if not has_logs and access not in {Access.MAKE, Access.MAKE_INSIDE}:
        raise StoreNotFound(f"the repository at {path} has no chatfs store: chatfs workspace create NAME makes it")
    if access is Access.READ:
        return git, True, False
    why = _why_read_only(git)
    if why:
        if access is Access.LOOK:
            return git, True, False
        raise ReadOnly(f"the repository at {path} can't be written ({why}): the store in it can only be read")
    if access is Access.LOOK and not described:
        return git, True, False
    with durability.failing(f"making a store in the repository at {path}"):
        made = _make(git)
    return git, False, made and not has_logs


def _find(path: Path) -> Path | None:
    """Where the repository at `path` has its refs and objects; None where nothing is there yet."""
    try:
        if not path.exists():
            if path.is_symlink():
                raise FormatError(f"{path} is a symbolic link to {os.readlink(path)}, which isn't there: name another")
            return None
        if not path.is_dir():
            raise FormatError(f"{path} is no directory, so no git repository is there: name a repository")
        git = path / ".git" if os.path.lexists(path / ".git") else path
        if git.is_file():  # of another work tree, or a submodule: gitdir: PATH
            text = git.read_text(errors="replace").strip()
            if not text.startswith("gitdir:"):
                raise FormatError(f"{git} names no git directory: name the repository itself")
            git = Path(os.path.normpath(git.parent / text.removeprefix("gitdir:").strip()))
        common = git / "commondir"
        if common.is_file():
            git = Path(os.path.normpath(git / common.read_text(errors="replace").strip()))
        if (git / "HEAD").exists() and (git / "objects").is_dir():
            return git.resolve()
        if git == path and not os.listdir(path):
            return None
    except OSError as error:
        raise StoreFailed(f"the repository at {path} can't be read: {error.strerror}: see who may") from error
    raise FormatError(f"{path} is no git repository: name one, or make it with git init")


def _check_repository(git: Path) -> None:
    try:
        pygit2.Repository(str(git)).free()
    except (pygit2.GitError, KeyError, ValueError, OSError) as error:
        # A KeyError's text is what it was given, with quotes around.
        why = str(error.args[0] if error.args else error).replace("\n", " ")
        advice = "use a repository with SHA-1 objects and refs as files"
        if "owned" in why:
            advice = f"git config --global --add safe.directory {git}"
        raise FormatError(f"git can't open the repository at {git} ({why}): {advice}") from error
    for directory in (git / DIRECTORY, git / DIRECTORY / ODB, git / "refs" / DIRECTORY):
        if directory.is_symlink():
            raise FormatError(f"{directory} is a symbolic link, which isn't followed: put the store's own there")


def _read_description(git: Path) -> bool:
    """Whether there is one. Raises FormatError where it is another's, or of a newer format."""
    path = git / DIRECTORY / DESCRIPTION
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FormatError(f"{path} is not an ordinary file: put the store's own back") from error
        raise StoreFailed(f"{path} can't be read: {error.strerror}: see who may") from error
    with open(fd, "rb") as file:
        data = file.read()
    try:
        number = orjson.loads(data)["format"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if type(number) is not int or number < 1:
        raise _damaged(path)
    if number > FORMAT:
        raise FormatError(f"the store in {git} has format {number}, this chatfs knows {FORMAT}: use a newer chatfs")
    return True


def _damaged(path: Path) -> FormatError:
    return FormatError(
        f"{path} doesn't describe a chatfs store: restore it from a backup, or remove it to have it made"
    )


def _why_read_only(git: Path) -> str:
    for directory in (git, git / "refs", git / "refs" / DIRECTORY, git / "objects", git / DIRECTORY):
        if os.path.lexists(directory) and not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
            return os.strerror(errno.EROFS if read_only else errno.EACCES)
    return ""


def _make_repository(path: Path) -> None:
    """It appears whole, unless somebody else makes one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.parent / f".{path.name[:200]}.{secrets.token_hex(8)}.tmp"
    durability.system.mkdir("store.make", fresh)
    try:
        pygit2.init_repository(str(fresh), bare=True)
        try:
            durability.system.rename("store.make", fresh, path)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
    except pygit2.GitError as error:
        raise StoreFailed(f"making a repository at {path}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            durability.remove_tree("store.make", fresh)
    durability.fsync_dir("store.make", path.parent)


def _make(git: Path) -> bool:
    """Make what isn't there, the description last; whether that wasn't there."""
    odb = git / DIRECTORY / ODB
    changed = durability.make_dirs("store.make", odb / "pack", git)
    _add_alternate(git)
    described = git / DIRECTORY / DESCRIPTION
    if not changed and described.exists():
        return False
    beside = durability.temporary(described)
    durability.write_new("store.make", beside, orjson.dumps({"format": FORMAT, "id": str(uuid.uuid4())}) + b"\n")
    first = True
    try:
        durability.system.link("store.make", beside, described)
    except FileExistsError:
        first = False
    finally:
        durability.discard("store.make", beside)
    for directory in {git / DIRECTORY, *changed}:
        durability.fsync_dir("store.make", directory)
    return first


def _add_alternate(git: Path) -> None:
    """Let git read chatfs's objects. The line is put back where it was taken out."""
    path = git / "objects" / "info" / "alternates"
    if _has_alternate(path):
        return
    durability.make_dirs("store.make", path.parent, git)
    lock = os.open(git / DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _has_alternate(path):
            return
        data = path.read_bytes() if path.exists() else b""
        if data and not data.endswith(b"\n"):
            data += b"\n"
        replace_gits("store.make", path, data + _ALTERNATE.encode() + b"\n", path if path.exists() else git / "HEAD")
    finally:
        os.close(lock)


def _has_alternate(path: Path) -> bool:
    try:
        return _ALTERNATE.encode() in path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return False
