"""Editors on history.md: what they save is what is read back, and one edited message is one event that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.mounts import Chat
from tests.support.programs import run
from tests.support.terminal import terminal

pytestmark = [pytest.mark.mount, pytest.mark.tools]

PROJECTED = ["attachments", "chat.json", "history.jsonl", "history.md"]


class Editing:
    """The chat's text before, and what must be there after an editor changed `hi there` to `hi there, friend`."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.before = chat.md.read_bytes()
        assert self.before.count(b"hi there") == 1
        self.after = self.before.replace(b"hi there", b"hi there, friend")
        self.answer = chat.log()[1]

    def saved(self, *scratch: str) -> None:
        """The text is there, the log has exactly the one edit, and besides `scratch` nothing was left lying around."""
        assert self.chat.md.read_bytes() == self.after
        [event] = self.chat.events()
        assert event["type"] == "message.edited"
        assert event["content"] == "hi there, friend"
        assert event["id"].encode() in self.answer.data
        assert sorted(os.listdir(self.chat.directory)) == sorted([*PROJECTED, *scratch])


@pytest.fixture
def editing(chat: Chat) -> Editing:
    return Editing(chat)


VIM = ["vim", "-Nu", "NONE", "-i", "NONE", "--cmd", "set backupskip="]
"""Vim without settings, except that it makes backups in the system's temporary directory, too."""


def vim(home: Path, file: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    run(home, *VIM, "-es", *words, "-c", "qa!", file)


@pytest.mark.parametrize("how", ["auto", "yes", "no"], ids="backupcopy={}".format)
def test_vim(editing: Editing, tmp_path: Path, how: str) -> None:
    vim(tmp_path, editing.chat.md, f"set backupcopy={how}", "%s/hi there/&, friend/", "w")
    editing.saved()


@pytest.mark.parametrize("how", ["yes", "no"], ids="backupcopy={}".format)
def test_vim_keeps_its_backup_as_a_scratch_file(editing: Editing, tmp_path: Path, how: str) -> None:
    vim(tmp_path, editing.chat.md, f"set backup backupcopy={how}", "%s/hi there/&, friend/", "w")
    editing.saved("history.md~")
    assert (editing.chat.directory / "history.md~").read_bytes() == editing.before


def test_vim_has_its_swap_file_beside_the_text(editing: Editing, tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    vim(
        tmp_path,
        editing.chat.md,
        "set swapfile updatecount=1",
        "%s/hi there/&, friend/",
        "preserve",
        f"call writefile(readdir(expand('%:p:h')), '{listing}')",
        "w",
    )
    assert ".history.md.swp" in listing.read_text().splitlines()
    editing.saved()


def test_vim_saves_twice(chat: Chat, tmp_path: Path) -> None:
    copy = tmp_path / "copy.md"
    vim(tmp_path, chat.md, "%s/hi there/one/", "w", "%s/hello/two/", "w", f"w! {copy}")
    assert chat.md.read_bytes() == copy.read_bytes()
    first, second = chat.log()[:2]
    events = chat.events()
    assert [(event["type"], event["content"]) for event in events] == [
        ("message.edited", "one"),
        ("message.edited", "two"),
    ]
    assert events[0]["id"].encode() in second.data
    assert events[1]["id"].encode() in first.data


def test_vim_adds_a_message(chat: Chat, tmp_path: Path) -> None:
    before = chat.md.read_bytes()
    vim(tmp_path, chat.md, "call append('$', ['', '## user', '', 'What else?'])", "w")
    assert chat.md.read_bytes() == before + b"\n## user\n\nWhat else?\n"
    [event] = chat.events()
    assert (event["type"], event["role"], event["content"]) == ("message.appended", "user", "What else?")


def test_vim_saves_over_a_log_that_moved_on(chat: Chat, tmp_path: Path) -> None:
    with terminal(tmp_path, *VIM, chat.md) as screen:
        screen.shows("hi there")
        screen.type("/hi there", "Enter", "A", ", friend", "Escape")
        screen.shows("hi there, friend")
        chat.say("meanwhile")
        screen.type(":w", "Enter")
        screen.shows("The file has been changed since reading it")
        screen.type("y")
        screen.shows("written")
        screen.type(":q", "Enter")
        screen.ended()
    [event] = chat.events()
    assert (event["type"], event["content"]) == ("message.edited", "hi there, friend")
    text = chat.md.read_text()
    assert text.index("hello") < text.index("hi there, friend") < text.index("meanwhile")
    assert sorted(os.listdir(chat.directory)) == PROJECTED


def test_vim_on_a_terminal(editing: Editing, tmp_path: Path) -> None:
    with terminal(tmp_path, *VIM, editing.chat.md) as screen:
        screen.shows("hi there")
        screen.type("/hi there", "Enter", "A", ", friend", "Escape")
        screen.shows("hi there, friend")
        assert ".history.md.swp" in os.listdir(editing.chat.directory)
        screen.type(":w", "Enter")
        screen.shows("written")
        screen.type(":q", "Enter")
        screen.ended()
    editing.saved()


def test_neovim(editing: Editing, tmp_path: Path) -> None:
    # Neovim echoes the messages of headless commands to stderr; `silent` leaves errors there.
    commands = ["--cmd", "set backupskip=", "-c", "silent %s/hi there/&, friend/", "-c", "silent w", "-c", "q"]
    run(tmp_path, "nvim", "--headless", "-u", "NONE", "-i", "NONE", *commands, editing.chat.md)
    editing.saved()


def emacs(home: Path, file: Path, *expressions: str) -> None:
    """Without settings, except that it makes backups in the system's temporary directory, too."""
    settings = "(setq inhibit-message t backup-enable-predicate #'always)"
    words = [word for expression in expressions for word in ("--eval", expression)]
    run(home, "emacs", "--batch", "-Q", "--eval", settings, file, *words)


def test_emacs_locks_with_a_symlink_and_keeps_a_backup(editing: Editing, tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    names = '(mapconcat #\'identity (directory-files default-directory) "\\n")'
    emacs(
        tmp_path,
        editing.chat.md,
        '(progn (search-forward "hi there") (insert ", friend"))',
        f'(write-region {names} nil "{listing}")',
        "(save-buffer)",
    )
    assert ".#history.md" in listing.read_text().splitlines()
    editing.saved("history.md~")
    assert (editing.chat.directory / "history.md~").read_bytes() == editing.before


def test_emacs_saves_with_a_backup_by_copying(editing: Editing, tmp_path: Path) -> None:
    emacs(
        tmp_path,
        editing.chat.md,
        "(setq backup-by-copying t)",
        '(progn (search-forward "hi there") (insert ", friend"))',
        "(save-buffer)",
    )
    editing.saved("history.md~")
    assert (editing.chat.directory / "history.md~").read_bytes() == editing.before


def test_nano_on_a_terminal(editing: Editing, tmp_path: Path) -> None:
    with terminal(tmp_path, "nano", "--ignorercfiles", "--nohelp", editing.chat.md) as screen:
        screen.shows("hi there")
        screen.type("M-/", "Up", "End", ", friend")
        screen.shows("hi there, friend")
        screen.type("C-o", "Enter")
        screen.shows("Wrote")
        screen.type("C-x")
        screen.ended()
    editing.saved()


def test_ed(editing: Editing, tmp_path: Path) -> None:
    run(tmp_path, "ed", "-s", editing.chat.md, given=b"/hi there/s//&, friend/\nw\nq\n")
    editing.saved()


@pytest.mark.parametrize("flag", ["-i", "-i.bak"])
def test_sed(editing: Editing, tmp_path: Path, flag: str) -> None:
    run(tmp_path, "sed", flag, "s/hi there/&, friend/", editing.chat.md)
    if flag == "-i":
        editing.saved()
    else:
        editing.saved("history.md.bak")
        assert (editing.chat.directory / "history.md.bak").read_bytes() == editing.before


def test_an_editor_that_changes_nothing_logs_nothing(chat: Chat, tmp_path: Path) -> None:
    before = chat.md.read_bytes()
    vim(tmp_path, chat.md, "w")
    run(tmp_path, "sed", "-i", "s/nowhere/x/", chat.md)
    run(tmp_path, "ed", "-s", chat.md, given=b"w\nq\n")
    assert chat.events() == []
    assert chat.md.read_bytes() == before
