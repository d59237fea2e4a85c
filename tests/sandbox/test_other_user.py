"""`chatfs sandbox run` by who isn't root: nothing of it needs a privilege."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, Cli
from tests.support.mounts import message

pytestmark = [
    pytest.mark.mount,
    pytest.mark.container,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user; who isn't runs all tests so"),
]


class Nobody(Cli):
    """Commands of the user `nobody`."""

    @property
    def environment(self) -> dict[str, str]:
        found = {name: value for name, value in super().environment.items() if name != "XDG_RUNTIME_DIR"}
        podman = f"podman --root {self.root}/s --runroot {self.root}/r --tmpdir {self.root}/t"
        return {**found, "HOME": str(self.root), "TMPDIR": str(self.root), "CHATFS_PODMAN": podman}

    def end_podman(self) -> None:
        """It keeps a process, which has its namespaces."""
        with contextlib.suppress(FileNotFoundError):
            os.kill(int((self.root / "t/pause.pid").read_bytes()), signal.SIGKILL)


def closed_above(directory: Path) -> Path | None:
    """The highest directory on the way to it that others can't go through."""
    return next((path for path in reversed([directory, *directory.parents]) if not path.stat().st_mode & 0o001), None)


def opened_to_all(place: Path) -> str:
    """What makes /dev/fuse and the programs usable for everybody, in a mount namespace of its own."""
    lines = [
        "set -e",
        f"mknod {place}/fuse c 10 229",
        f"chmod 666 {place}/fuse",
        f"mount --bind {place}/fuse /dev/fuse",
    ]
    needed = {REPOSITORY, Path(sys.prefix), Path(os.path.realpath(sys.base_prefix))}
    behind: dict[Path, list[Path]] = {}
    for directory in sorted(needed):
        if (closed := closed_above(directory)) is not None:
            behind.setdefault(closed, []).append(directory)
    for closed, directories in behind.items():
        for number, directory in enumerate(directories):
            lines += [f"mkdir {place}/{number}", f"mount --bind {shlex.quote(str(directory))} {place}/{number}"]
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}")
        for number, directory in enumerate(directories):
            lines += [f"mkdir -p {shlex.quote(str(directory))}"]
            lines += [f"mount --bind {place}/{number} {shlex.quote(str(directory))}", f"umount -l {place}/{number}"]
            lines += [f"rmdir {place}/{number}"]
    return "\n".join([*lines, f"rm {place}/fuse", 'exec "$@"'])


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    user = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="chatfs-", dir="/tmp") as path:
        root = Path(path)
        root.chmod(0o755)
        home = root / "home"
        home.mkdir()
        os.chown(home, user.pw_uid, user.pw_gid)
        (root / "mounts").mkdir()
        found = Nobody(home)
        found.before = ["unshare", "--mount", "sh", "-c", opened_to_all(root / "mounts"), "sh"]
        found.before += ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        code, _, err = found.attempt("workspace", "create", "demo")
        if code:
            pytest.skip(f"another user can't be had here: {err.strip()}")
        found.run("append", "demo/trip", "-", "--create", given=message("hello"))
        yield found
        found.end_podman()


@pytest.mark.parametrize("runtime", ["none", "bwrap", "podman"])
def test_another_user_than_root(nobody: Nobody, runtime: str, rootfs: Path) -> None:
    """It is that user outside; files are its, and nothing is left."""
    words = ["--runtime", runtime]
    if runtime == "podman":
        image = nobody.root.parent / "rootfs"
        shutil.copytree(rootfs, image, symlinks=True)
        for path in (image, *image.rglob("*")):
            os.lchown(path, nobody.root.stat().st_uid, -1)
        words += ["--image", str(image)]
    line = message("from inside").decode().strip()
    script = f"cat history.md; echo '{line}' >> history.jsonl; id -u; exit 3"
    code, out, err = nobody.attempt("sandbox", "run", "demo/trip", *words, "--", "sh", "-c", script)
    if runtime == "podman" and code != 3:
        pytest.skip(f"podman can't run here without root: {err.strip()}")
    assert (code, "hello" in out) == (3, True), err
    uid = pwd.getpwnam("nobody").pw_uid
    assert int(out.splitlines()[-1]) == (0 if runtime == "podman" else uid)  # inside
    last = nobody.entries("demo/trip")[-2]
    assert (last.data.count(b"from inside"), last.actor.partition("/")[0]) == (1, f"uid:{uid}")
    assert nobody.json("sandbox", "ls") == []
    assert list((nobody.root / "state/chatfs/sandboxes").iterdir()) == []
    if runtime == "podman":  # each command here has mounts of its own, and podman those of the first one
        said = nobody.fails("sandbox", "run", "demo/trip", *words, "--", "true")
        assert "podman doesn't see the chat's mount" in said
