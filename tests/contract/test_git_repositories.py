"""The `git:` driver in repositories of several kinds, beside who else uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.errors import InvalidInput
from store.moving.migrating import migrate
from store.registry import open_driver
from tests.contract.backends import CHAT, SPACE, entries
from tests.contract.git import git, project


async def test_a_partial_clone(tmp_path: Path):
    source = project(tmp_path / "project")
    git(source, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--filter=blob:none", "--no-checkout", f"file://{source}", "clone")
    # Some versions of git note it like this.
    git(tmp_path / "clone", "config", "core.repositoryFormatVersion", "1")
    git(tmp_path / "clone", "config", "extensions.partialClone", "origin")
    driver = await open_driver(f"git://{tmp_path}/clone")
    log = await driver.open_log(SPACE, create=True)
    assert await log.append(entries("a")) == 1
    git(tmp_path / "clone", "gc", "--quiet", "--prune=now")
    assert [entry.seq async for entry in log.read()] == [1]
    await log.aclose()
    await driver.aclose()


async def test_files_of_gits_stay_readable_to_whom_they_were(tmp_path: Path):
    """Other users of the repository need them for all that they do in it."""
    path = project(tmp_path / "project")
    alternates, packed = path / ".git/objects/info/alternates", path / ".git/packed-refs"
    (path / ".git/HEAD").chmod(0o664)
    driver = await open_driver(f"git://{path}")
    assert alternates.stat().st_mode & 0o777 == 0o664
    for space in (SPACE, CHAT):
        await (await driver.open_log(space, create=True)).aclose()
    git(path, "pack-refs", "--all")
    packed.chmod(0o664)
    await driver.delete_space(CHAT)
    assert packed.stat().st_mode & 0o777 == 0o664
    assert "refs/heads/main" in packed.read_text()
    await driver.aclose()
    git(tmp_path, "init", "-q", "--bare", "elsewhere")
    alternates.write_text(f"{tmp_path}/elsewhere/objects\n")
    alternates.chmod(0o640)
    await (await open_driver(f"git://{path}")).aclose()
    assert alternates.read_text() == f"{tmp_path}/elsewhere/objects\n../chatfs/odb\n"
    assert alternates.stat().st_mode & 0o777 == 0o640
    git(path, "log", "--oneline", "main")


async def test_the_work_trees_of_a_repository_are_one_store(tmp_path: Path) -> None:
    path = project(tmp_path / "project")
    git(path, "worktree", "add", "-q", "../other", "-b", "other")
    one = await open_driver(f"git://{path}")
    other = await open_driver(f"git://{tmp_path}/other")
    with pytest.raises(InvalidInput, match="the same store"):
        await migrate(one, other)
    await one.aclose()
    await other.aclose()
