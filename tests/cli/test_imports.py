"""A command imports what it uses: imports are most of what a short command costs."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fusefs.cli.entry import build
from fusefs.cli.parser import Parser
from store.compaction import KEPT
from tests.cli.conftest import REPOSITORY, Cli

LOOP = {"trio", "asyncio"}
STORE = {"orjson", "store.model", "store.driver", "store.chat", "store.library"}
DEAR = {"ctypes", "dataclasses", "hashlib", "importlib.metadata", "inspect", "logging", "ssl", "subprocess"}
MOUNT = {"pyfuse3", "fusefs.mount", "fusefs.operations"}
RARE = {
    "fusefs.sandbox",
    "importlib.metadata",
    "pygit2",
    "sqlite3",
    "store.compaction",
    "store.drivers.git",
    "store.drivers.memory",
    "store.exporters",
    "store.fsck",
    "store.gc.collect",
    "store.importers",
    "store.importing",
    "store.index",
    "store.moving",
    "store.projection.project",
}


def leaves(parser: Parser, *words: str) -> Iterator[tuple[list[str], Parser]]:
    """All commands."""
    below = [action for action in parser.declared()._actions if isinstance(action, argparse._SubParsersAction)]
    if parser.get_default("run") is not None:
        yield list(words), parser
    for action in below:
        for word, found in action.choices.items():
            yield from leaves(found, *words, word)


COMMANDS = list(leaves(build()))


def imported(cli: Cli, code: str, *, given: bytes = b"") -> set[str]:
    """The modules that a process which runs `code` has in the end."""
    listed = cli.root / "modules"
    listing = f"with open({str(listed)!r}, 'w') as file:\n    file.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys\n{code}\n{listing}"],
        check=False,
        capture_output=True,
        env=cli.environment | {"PYTHONPATH": str(REPOSITORY)},
        cwd=cli.root,
        input=given,
    )
    assert done.returncode == 0, done.stderr
    return set(listed.read_text().split())


def of_command(cli: Cli, *words: str | Path, given: bytes = b"") -> set[str]:
    said = [str(word) for word in words]
    return imported(cli, f"from fusefs.cli.entry import main\nassert main({said!r}) == 0", given=given)


def test_help_and_mistyped_words_need_neither_store_nor_event_loop(cli: Cli) -> None:
    for lines in (
        [["--version"]],
        [["-h"], ["chat", "-h"], ["chat", "ls"], ["no-such-command"]],
        # These list what they may be given, and so import that.
        [[*words, "-h"] for words, _ in COMMANDS if words not in (["mount"], ["sandbox", "run"])],
    ):
        code = f"""
from fusefs.cli.entry import main
for words in {lines!r}:
    try:
        main(words)
    except SystemExit as ended:
        assert ended.code == (0 if words[-1].startswith("-") else 2)
"""
        assert not imported(cli, code) & (LOOP | STORE | DEAR | MOUNT | RARE), lines


@pytest.mark.parametrize(
    "words", [["chat", "ls", "demo"], ["log", "demo/trip"], ["cat", "demo/trip"], ["workspace", "ls"], ["append"]]
)
def test_what_is_used_daily_imports_nothing_rare(demo: Cli, words: list[str]) -> None:
    given = b'{"role":"user","content":"again"}\n'
    found = of_command(demo, *words, *["demo/trip"] * (words == ["append"]), given=given)
    assert "trio" in found
    assert not found & (MOUNT | RARE)


@pytest.mark.parametrize("words", [["status"], ["search", "hello"], ["fsck"], ["gc"], ["project", "status"]])
def test_only_what_mounts_imports_pyfuse3(demo: Cli, words: list[str], tmp_path: Path) -> None:
    demo.run("project", "init", tmp_path, "--workspace", "demo")
    code = f"from fusefs.cli.entry import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass"
    assert not imported(demo, code) & MOUNT


@pytest.mark.mount
def test_who_starts_a_mount_leaves_store_and_event_loop_to_it(demo: Cli, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    for command in ("mount", "umount"):
        found = of_command(demo, command, mountpoint)
        assert not found & (LOOP | MOUNT | RARE | {"store.chat", "store.library"})


def test_each_command_has_what_does_it() -> None:
    assert len(COMMANDS) > 30
    for words, parser in COMMANDS:
        run = parser.get_default("run")
        assert isinstance(run, partial)
        work, name = run.args
        assert name == words[-1]
        assert callable(work()[name])


def test_the_default_that_help_names_is_the_stores() -> None:
    (parser,) = [parser for words, parser in COMMANDS if words == ["compact"]]
    assert f"(default: {KEPT})" in parser.format_help()
