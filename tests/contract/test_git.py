"""The `git:` driver: what its repository looks like, and which repositories it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from store import codec
from store.driver import Access
from store.errors import (
    CorruptLog,
    FormatError,
    ReadOnly,
    SpaceNotFound,
    StoreError,
    StoreFailed,
    StoreNotFound,
)
from store.model import Seq
from store.registry import open_driver
from tests.contract.backends import CHAT, SPACE, FakeClock, GitBackend, entries
from tests.contract.git import REF, fsck, git, open_log, project
from tests.support.disks import unwritable


def url(path: Path) -> str:
    return f"git://{path}"


def snapshot(path: Path) -> dict[str, bytes]:
    return {
        str(found.relative_to(path)): found.read_bytes() if found.is_file() else b""
        for found in path.rglob("*")
        if not found.is_symlink()
    }


async def test_git_shows_what_was_appended(git_backend: GitBackend):
    clock = FakeClock()
    driver = await git_backend.open(clock)
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a"))
    clock.now += 61_000
    await log.append([each._replace(actor="uid:1000/vim <x>") for each in entries("b", "c")])
    text = log.read_text(0, 10**6)
    assert git(git_backend.path, "show", f"{REF}:history.jsonl").encode() + b"\n" == text
    assert git(git_backend.path, "log", "--format=%an|%at|%s", REF).splitlines() == [
        f"uid:1000/vim x|{clock.now // 1000}|append 2-3",
        f"uid:1/test|{clock.now // 1000 - 61}|append 1",
        f"chatfs|{clock.now // 1000 - 61}|make {SPACE}",
    ]
    patch = git(git_backend.path, "log", "-p", "-1", "--format=", REF)
    added = [line[1:] for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert [line.encode() for line in added] == text.splitlines()[1:]
    assert not [line for line in patch.splitlines() if line.startswith("-") and not line.startswith("---")]
    fsck(git_backend.path)


@pytest.mark.parametrize("sizes", [[1] * 300, [300], [7, 1, 200, 92], [100, 100, 100]])
async def test_the_same_entries_make_the_same_tree(git_backend: GitBackend, sizes: list[int]):
    """However they came, in whatever repository."""
    clock = FakeClock()
    driver = await git_backend.open(clock)
    source = await driver.open_log(SPACE, create=True)
    total = 0
    for size in sizes:
        await source.append(entries(*(f"{total + number:0400}" for number in range(size))))
        total += size
    found = [entry async for entry in source.read()]
    for space, pieces in ((CHAT, 1), ("workspace/w2", 3)):
        other = await driver.open_log(space, create=True)  # type: ignore[arg-type]
        held: list = []
        for entry in found:
            held.append(entry)
            if not entry.more and len(held) >= len(found) // pieces:
                await other.adopt(held)
                held = []
        await other.adopt(held)
        tree = git(git_backend.path, "rev-parse", f"refs/chatfs/{space}/log^{{tree}}")
        assert tree == git(git_backend.path, "rev-parse", f"{REF}^{{tree}}")
    names = git(git_backend.path, "ls-tree", "-r", "--name-only", REF).splitlines()
    assert names[0] == "history.jsonl"
    assert len(names) > 6
    whole = b"".join(git(git_backend.path, "show", f"{REF}:{name}").encode() + b"\n" for name in [*names[1:], names[0]])
    assert whole == source.read_text(0, 10**7)
    assert [entry.seq for entry, _ in codec.decode_lines(whole, after=Seq(0), previous_crc=0)] == [*range(1, 301)]


async def test_a_truncated_log_is_what_it_would_be_if_it_began_there(git_backend: GitBackend):
    driver = await git_backend.open()
    one, two = await driver.open_log(SPACE, create=True), await driver.open_log(CHAT, create=True)
    for number in range(200):
        await one.append(entries(f"{number:0400}"))
    await one.truncate_before(Seq(61))
    await two.adopt([entry async for entry in one.read()], after=one.base)
    assert git(git_backend.path, "rev-parse", f"{REF}^{{tree}}") == git(
        git_backend.path, "rev-parse", f"refs/chatfs/{CHAT}/log^{{tree}}"
    )
    base = json.loads(git(git_backend.path, "show", f"{REF}:base.json"))
    assert base["seq"] == 60
    fsck(git_backend.path)
    # What was dropped stays in git's history.
    assert git(git_backend.path, "rev-list", "--count", REF) == "202"


async def test_opening_reads_the_end_alone(git_backend: GitBackend):
    """As many objects, whatever the log's length."""
    log = await open_log(git_backend)
    counts = []
    for size in (300, 3000):
        await log.append(entries(*(f"{number:0200}" for number in range(size))))
        for _ in range(20):
            await log.append(entries("x"))
        driver = await git_backend.open()
        read = driver.objects.read  # type: ignore[attr-defined]
        names: list[str] = []

        def counting(name: str, kind: bytes, names=names, read=read) -> bytes:
            names.append(name)
            return read(name, kind)

        driver.objects.read = counting  # type: ignore[attr-defined]
        assert (await driver.open_log(SPACE)).head == log.head
        counts.append(len(names))
    assert counts[0] == counts[1] <= 7


# ---- in somebody's repository


async def test_a_projects_branches_index_and_work_tree_are_left_alone(tmp_path: Path):
    path = project(tmp_path / "project")
    git(path, "worktree", "add", "-q", "../other", "-b", "side")

    def look() -> list[str]:
        refs = git(path, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/tags")
        rest = (("symbolic-ref", "HEAD"), ("status", "--porcelain"), ("diff",), ("ls-files", "-s"))
        return [refs, *(git(path, *each) for each in rest)]

    before = look()
    for number, place in enumerate((path, path / ".git", tmp_path / "other")):
        driver = await open_driver(url(place))
        assert driver.made == (number == 0)
        log = await driver.open_log(SPACE, create=True)
        assert await log.append(entries("a")) == number + 1
        await driver.kv.put("k", number)
        await driver.blobs.put(b"blob")
        await log.sync()
        await log.aclose()
        await driver.aclose()
    assert look() == before
    assert sorted(found.name for found in (path / ".git").iterdir() if "chatfs" in found.name) == ["chatfs"]
    fsck(path)


async def test_a_work_trees_subdirectory_is_no_repository(tmp_path: Path):
    path = project(tmp_path / "project")
    (path / "sub").mkdir()
    (path / "sub/file").write_text("x")
    before = snapshot(tmp_path)
    with pytest.raises(FormatError, match="no git repository"):
        await open_driver(url(path / "sub"))
    assert snapshot(tmp_path) == before


# ---- refused, and nothing is written


def make_file(path: Path) -> None:
    path.write_text("x")


def make_other(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_sha256(path: Path) -> None:
    path.mkdir()
    git(path, "init", "-q", "--bare", "--object-format=sha256")


def make_newer(path: Path) -> None:
    path.mkdir()
    git(path, "init", "-q", "--bare")
    (path / "chatfs").mkdir()
    (path / "chatfs/store.json").write_text('{"format":2,"id":"x"}')


def make_damaged(path: Path) -> None:
    make_newer(path)
    (path / "chatfs/store.json").write_text("[]")


def make_linked(path: Path) -> None:
    path.mkdir()
    git(path, "init", "-q", "--bare")
    (path / "elsewhere").mkdir()
    (path / "chatfs").symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_file, "no directory"),
        (make_other, "no git repository"),
        (make_dangling, "symbolic link"),
        (make_sha256, "can't open the repository"),
        (make_newer, "newer chatfs"),
        (make_damaged, "doesn't describe"),
        (make_linked, "symbolic link"),
    ],
)
async def test_what_is_no_store_is_refused_in_one_line(tmp_path: Path, make, words: str):
    make(tmp_path / "store")
    before = snapshot(tmp_path)
    for access in Access:
        with pytest.raises(FormatError, match=words) as caught:
            await open_driver(url(tmp_path / "store"), access=access)
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("access", [Access.READ, Access.LOOK, Access.WRITE])
async def test_a_repository_without_a_store(tmp_path: Path, access: Access):
    path = project(tmp_path / "project")
    before = snapshot(tmp_path)
    for place in (path, tmp_path / "none"):
        with pytest.raises(StoreNotFound):
            await open_driver(url(place), access=access)
    assert snapshot(tmp_path) == before


async def test_a_mistyped_directory_is_not_made(tmp_path: Path):
    with pytest.raises(StoreNotFound, match="nor a directory"):
        await open_driver(url(tmp_path / "no/such"), access=Access.MAKE_INSIDE)
    assert snapshot(tmp_path) == {}


async def test_a_repository_that_cant_be_written(git_backend: GitBackend):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    with unwritable(git_backend.path):
        with pytest.raises(ReadOnly):
            await open_driver(url(git_backend.path), access=Access.WRITE)
        driver = await open_driver(url(git_backend.path), access=Access.LOOK)
        assert driver.read_only
        await driver.aclose()


async def test_read_only_changes_nothing(git_backend: GitBackend):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    await log.sync()
    before = snapshot(git_backend.path)
    driver = await open_driver(url(git_backend.path), access=Access.READ)
    found = await driver.open_log(SPACE)
    assert [entry.seq async for entry in found.read()] == [1]
    for attempt in (
        found.append(entries("b")),
        found.truncate_before(Seq(2)),
        driver.leases.acquire(SPACE, "me", 1000),
        driver.open_log(CHAT, create=True),
        driver.delete_space(SPACE),
        driver.kv.put("k", 1),
        driver.blobs.put(b"x"),
    ):
        with pytest.raises(ReadOnly):
            await attempt
    assert found.append_now(entries("b")) is None
    await found.sync()
    async with found.subscribe(Seq(0)) as following:
        await anext(following)
    await found.aclose()
    await driver.aclose()
    assert snapshot(git_backend.path) == before


# ---- refs that aren't what they should be


def refs(path: Path) -> dict[str, bytes]:
    return snapshot(path / "refs")


async def refused(backend: GitBackend, kind: type[StoreError], words: str, *, appending: bool = False) -> None:
    """Opening says so in one line (or appending does), and the refs stay as they are."""
    before = refs(backend.path)
    driver = await backend.open()
    with pytest.raises(kind, match=words) as caught:
        log = await driver.open_log(SPACE)
        assert appending
        await log.append(entries("lost"))
    assert "\n" not in str(caught.value)
    assert refs(backend.path) == before


async def test_a_ref_that_is_missing(git_backend: GitBackend):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    git(git_backend.path, "update-ref", "-d", REF)
    for attempt in (log.append(entries("b")), log.refresh(), (await git_backend.open()).open_log(SPACE)):
        with pytest.raises(SpaceNotFound):
            await attempt
    assert git(git_backend.path, "for-each-ref") == ""


async def test_a_symbolic_ref(git_backend: GitBackend):
    await open_log(git_backend)
    git(git_backend.path, "symbolic-ref", REF, "refs/heads/main")
    await refused(git_backend, FormatError, "symbolic ref, to 'refs/heads/main'")


async def test_a_ref_of_something_else(git_backend: GitBackend, tmp_path: Path):
    await open_log(git_backend)
    other = project(tmp_path / "project")
    git(git_backend.path, "fetch", "-q", str(other), "+main:" + REF)
    await refused(git_backend, FormatError, "isn't one of the log")


async def test_a_ref_that_is_garbage(git_backend: GitBackend):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    (git_backend.path / REF).write_text("nonsense\n")
    await refused(git_backend, StoreFailed, "names no commit")


async def test_a_commit_that_isnt_there(git_backend: GitBackend):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    (git_backend.path / REF).write_text("1" * 40 + "\n")
    await refused(git_backend, StoreFailed, "can't be read")


async def test_a_merge_is_not_linear(git_backend: GitBackend):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    one = git(git_backend.path, "rev-parse", REF)
    merge = git(git_backend.path, "commit-tree", f"{REF}^{{tree}}", "-p", one, "-p", f"{one}^", "-m", "merge")
    git(git_backend.path, "update-ref", REF, merge)
    await refused(git_backend, CorruptLog, f"isn't linear.*update-ref {REF} {one}", appending=True)


@pytest.mark.parametrize("synced", [True, False])
async def test_a_ref_that_was_rewritten_is_noticed_and_can_be_put_back(git_backend: GitBackend, *, synced: bool):
    log, other = await open_log(git_backend), await open_log(git_backend)
    await log.append(entries("a"))
    before = git(git_backend.path, "rev-parse", REF)
    await log.append(entries("b"))
    right = git(git_backend.path, "rev-parse", REF)
    await other.refresh()
    if synced:
        await log.sync()
    git(git_backend.path, "update-ref", REF, before)
    for each in (log, other):
        assert (await each.refresh()).seq == 2
        assert isinstance(each.damage, CorruptLog)
        assert [entry.seq async for entry in each.read()] == [1, 2]
        with pytest.raises(CorruptLog, match=f"rewritten or has diverged.*git update-ref {REF} {right}"):
            await each.append(entries("c"))
        assert each.append_now(entries("c")) is None
    assert git(git_backend.path, "rev-parse", REF) == before
    if synced:  # also who opens it only now knows
        await refused(git_backend, CorruptLog, f"git update-ref {REF} {right}", appending=True)
    git(git_backend.path, "update-ref", REF, right)
    assert await log.append(entries("c")) == 3
    assert log.damage is None


async def test_a_ref_that_was_rewritten_can_be_accepted(git_backend: GitBackend):
    """As README.md says."""
    log = await open_log(git_backend)
    for text in "ab":
        await log.append(entries(text))
    await log.sync()
    await log.aclose()
    git(git_backend.path, "update-ref", REF, f"{REF}~1")
    await refused(git_backend, CorruptLog, "rewritten", appending=True)
    (git_backend.path / f"chatfs/{SPACE}/stable.json").unlink()
    log = await open_log(git_backend)
    assert await log.append(entries("c")) == 2
    fsck(git_backend.path)


async def test_damaged_text_is_found(git_backend: GitBackend, tmp_path: Path):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    text = log.read_text(0, 1000).replace(b'"a"', b'"b"')
    (tmp_path / "bad").write_bytes(text)
    blob = git(git_backend.path, "hash-object", "-w", str(tmp_path / "bad"))
    (tmp_path / "list").write_text(f"100644 blob {blob}\thistory.jsonl\n")
    tree = git(git_backend.path, "read-tree", "--empty") or None
    git(git_backend.path, "update-index", "--add", "--cacheinfo", f"100644,{blob},history.jsonl")
    tree = git(git_backend.path, "write-tree")
    commit = git(git_backend.path, "commit-tree", tree, "-p", REF, "-m", "edited by hand")
    git(git_backend.path, "update-ref", REF, commit)
    with pytest.raises(CorruptLog):
        await log.append(entries("c"))
    await refused(git_backend, CorruptLog, "is damaged", appending=True)


# ---- after a power cut


@pytest.mark.parametrize("cut", ["empty ref", "NUL ref", "no commit", "empty commit", "no blob"])
async def test_a_power_cut_takes_only_what_wasnt_synced(git_backend: GitBackend, cut: str):
    log = await open_log(git_backend)
    await log.append(entries("a", "b"))
    await log.sync()
    await log.append(entries("lost"))
    ref = git_backend.path / REF
    lost = {"no blob": f"{REF}:history.jsonl"}.get(cut, REF)
    name = git(git_backend.path, "rev-parse", lost)
    path = git_backend.path / "chatfs/odb" / name[:2] / name[2:]
    if cut == "empty ref":
        ref.write_bytes(b"")
    elif cut == "NUL ref":
        ref.write_bytes(b"\0" * 41)
    elif cut == "empty commit":
        path.write_bytes(b"")
    else:
        path.unlink()
    await log.aclose()
    again = await open_log(git_backend)
    assert [entry.data async for entry in again.read()] == [b'"a"', b'"b"']
    assert await again.append(entries("c")) == 3
    assert [entry.data async for entry in (await open_log(git_backend)).read()] == [b'"a"', b'"b"', b'"c"']
    fsck(git_backend.path)
