"""The shell's own tools: redirections, tee, cp, mv, rm, ln, grep, find, jq, less. And what they are refused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Mounted, Workspace, message
from tests.support.programs import attempt, run
from tests.support.terminal import terminal

pytestmark = [pytest.mark.mount, pytest.mark.tools]

NOTE = b"a note\n"
NOTE_DIGEST = f"sha256:{hashlib.sha256(NOTE).hexdigest()}"


@pytest.fixture
def note(tmp_path: Path) -> Path:
    path = tmp_path / "note.txt"
    path.write_bytes(NOTE)
    path.chmod(0o640)
    os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    return path


# ---- history.jsonl


def test_echo_appends(chat: Chat, tmp_path: Path) -> None:
    line = '{"role":"user","content":"and then?"}'
    run(tmp_path, "sh", "-c", f"echo '{line}' >> {chat.jsonl}")
    [event] = chat.events()
    assert (event["type"], event["role"], event["content"]) == ("message.appended", "user", "and then?")
    assert chat.log()[-1].actor == f"uid:{os.getuid()}/sh"
    assert chat.md.read_text().endswith("\n\nand then?\n")


def test_tee_appends_one_batch_per_write(chat: Chat, tmp_path: Path) -> None:
    run(tmp_path, "tee", "-a", chat.jsonl, given=message("one") + message("two") + message("three"))
    assert [event["content"] for event in chat.events()] == ["one", "two", "three"]
    assert [(entry.more, entry.actor.split("/")[1]) for entry in chat.log()[-3:]] == [
        (2, "tee"),
        (1, "tee"),
        (0, "tee"),
    ]


def test_python_appends_line_by_line(chat: Chat) -> None:
    with chat.jsonl.open("a") as log:
        for number in range(3):
            print(json.dumps({"type": "step", "number": number}), file=log, flush=True)
            assert chat.events() == [{"type": "step", "number": number}]


def test_a_line_in_pieces_waits_for_its_end(chat: Chat) -> None:
    with chat.jsonl.open("ab", buffering=0) as log:
        log.write(b'{"type":"step",')
        assert chat.events() == []
        log.write(b'"number":1}\n')
        assert chat.events() == [{"type": "step", "number": 1}]
        log.write(b'{"type":"last"}')
    assert chat.types() == ["last"]


def test_what_is_not_json_is_refused(chat: Chat, tmp_path: Path) -> None:
    done = attempt(tmp_path, "tee", "-a", chat.jsonl, given=b"not json\n")
    assert done.status == 1
    assert "Invalid argument" in done.stderr
    assert chat.events() == []


@pytest.mark.parametrize("command", [": > history.jsonl", "truncate -s 0 history.jsonl", "cp history.md history.jsonl"])
def test_the_log_cannot_be_overwritten(chat: Chat, tmp_path: Path, command: str) -> None:
    before = chat.log_file.read_bytes()
    done = attempt(tmp_path, "sh", "-c", command, cwd=chat.directory)
    assert done.status != 0
    assert "Operation not permitted" in done.stderr
    assert chat.log_file.read_bytes() == before == chat.jsonl.read_bytes()


def test_what_is_shown_is_what_is_stored(chat: Chat, tmp_path: Path) -> None:
    assert run(tmp_path, "cat", chat.jsonl) == chat.log_file.read_bytes()


def test_jq_reads_the_log(chat: Chat, tmp_path: Path) -> None:
    query = 'select(.data.type == "message.appended") | [.seq, .data.role, .data.content]'
    found = run(tmp_path, "jq", "-c", query, chat.jsonl).decode().splitlines()
    assert found == ['[1,"user","hello"]', '[2,"assistant","hi there"]']


# ---- history.md


def test_cat_appends_a_message(chat: Chat, tmp_path: Path) -> None:
    before = chat.md.read_bytes()
    run(tmp_path, "sh", "-c", f"cat >> {chat.md}", given=b"\n## user\n\nby hand\n")
    [event] = chat.events()
    assert (event["type"], event["role"], event["content"]) == ("message.appended", "user", "by hand")
    assert chat.md.read_bytes() == before + b"\n## user\n\nby hand\n"


def test_cp_over_the_text_is_a_save(chat: Chat, tmp_path: Path) -> None:
    new = tmp_path / "new.md"
    new.write_bytes(chat.md.read_bytes().replace(b"hello", b"good morning"))
    run(tmp_path, "cp", new, chat.md)
    assert chat.types() == ["message.edited"]
    assert chat.md.read_bytes() == new.read_bytes()


def test_mv_over_the_text_is_a_save(chat: Chat, tmp_path: Path) -> None:
    wanted = chat.md.read_bytes().replace(b"hello", b"good morning")
    draft = chat.directory / "draft.md"
    draft.write_bytes(wanted)
    assert chat.events() == []
    run(tmp_path, "mv", draft, chat.md)
    assert chat.types() == ["message.edited"]
    assert chat.md.read_bytes() == wanted
    assert not draft.exists()


def test_text_that_is_not_utf8_is_refused_and_kept_aside(chat: Chat, tmp_path: Path) -> None:
    before = chat.md.read_bytes()
    bad = tmp_path / "bad.md"
    bad.write_bytes(b"## user\n\n\xff\n")
    done = attempt(tmp_path, "cp", bad, chat.md)
    assert done.status == 1
    assert "Invalid or incomplete multibyte" in done.stderr
    assert chat.md.read_bytes() == before
    assert (chat.directory / "history.md.rejected-1").read_bytes() == bad.read_bytes()
    assert chat.events() == []


def test_modes_and_times_of_projected_files_change_nothing(chat: Chat, tmp_path: Path) -> None:
    run(tmp_path, "chmod", "600", chat.md, chat.jsonl)
    run(tmp_path, "touch", "-d", "2001-01-01", chat.md, chat.jsonl)
    assert chat.events() == []
    assert chat.jsonl.stat().st_mtime > chat.log()[0].ts / 1000 - 1


# ---- attachments


def test_cp_attaches(chat: Chat, tmp_path: Path, note: Path) -> None:
    run(tmp_path, "cp", note, chat.attachments)
    [event] = chat.events()
    assert event["type"] == "attachment.put"
    assert (event["name"], event["digest"], event["size"]) == ("note.txt", NOTE_DIGEST, len(NOTE))
    assert event["content_type"] == "text/plain"
    assert (chat.attachments / "note.txt").read_bytes() == NOTE


def test_cp_p_keeps_mode_and_time_in_the_same_event(chat: Chat, tmp_path: Path, note: Path) -> None:
    run(tmp_path, "cp", "-p", note, chat.attachments)
    assert chat.types() == ["attachment.put"]
    copied, original = (chat.attachments / "note.txt").stat(), note.stat()
    assert (copied.st_mode, copied.st_mtime_ns) == (original.st_mode, original.st_mtime_ns)


def test_chmod_and_touch_of_an_attachment_are_logged(chat: Chat, tmp_path: Path, note: Path) -> None:
    run(tmp_path, "cp", note, chat.attachments)
    attached = chat.attachments / "note.txt"
    chat.events()
    run(tmp_path, "chmod", "600", attached)
    run(tmp_path, "touch", "-d", "2001-01-01T00:00:00Z", attached)
    assert [(e["type"], e.get("mode"), e.get("mtime_ns")) for e in chat.events()] == [
        ("attachment.changed", 0o600, None),
        ("attachment.changed", None, 978_307_200_000_000_000),
    ]
    assert (attached.stat().st_mode & 0o777, attached.stat().st_mtime) == (0o600, 978_307_200)


def test_mv_and_rm_of_an_attachment(chat: Chat, tmp_path: Path, note: Path) -> None:
    run(tmp_path, "cp", note, chat.attachments)
    run(tmp_path, "mv", chat.attachments / "note.txt", chat.attachments / "b.txt")
    run(tmp_path, "rm", chat.attachments / "b.txt")
    put, renamed, removed = chat.events()
    assert put["type"] == "attachment.put"
    assert renamed == {"type": "attachment.renamed", "name": "note.txt", "to": "b.txt"}
    assert removed == {"type": "attachment.removed", "name": "b.txt"}
    assert os.listdir(chat.attachments) == []


def test_mv_between_chats(chat: Chat, workspace: Workspace, tmp_path: Path, note: Path) -> None:
    other = workspace.chat("other")
    run(tmp_path, "cp", "-p", note, chat.attachments)
    inode_times = (chat.attachments / "note.txt").stat().st_mtime_ns
    chat.events()
    run(tmp_path, "mv", chat.attachments / "note.txt", other.attachments)
    assert chat.events() == [{"type": "attachment.removed", "name": "note.txt"}]
    [put] = other.events()
    assert (put["type"], put["name"], put["digest"]) == ("attachment.put", "note.txt", NOTE_DIGEST)
    assert (other.attachments / "note.txt").stat().st_mtime_ns == inode_times


def test_mv_in_and_out(chat: Chat, tmp_path: Path, note: Path) -> None:
    run(tmp_path, "mv", note, chat.attachments)
    out = tmp_path / "out.txt"
    run(tmp_path, "mv", chat.attachments / "note.txt", out)
    assert chat.types() == ["attachment.put", "attachment.removed"]
    assert out.read_bytes() == NOTE


def test_attachments_have_no_subdirectories(chat: Chat, tmp_path: Path) -> None:
    done = attempt(tmp_path, "mkdir", chat.attachments / "sub")
    assert (done.status, done.stderr.rsplit(": ", 1)[1]) == (1, "Operation not permitted\n")


# ---- chats


def test_mv_renames_archives_and_brings_back(workspace: Workspace, chat: Chat, tmp_path: Path) -> None:
    chats, archive = workspace.directory / "chats", workspace.directory / "archive"
    run(tmp_path, "mv", chats / "trip", chats / "journey")
    run(tmp_path, "mv", chats / "journey", archive)
    assert os.listdir(archive) == ["journey"]
    run(tmp_path, "mv", archive / "journey", chats)
    assert [event["type"] for event in workspace.events()[-3:]] == ["chat.renamed", "chat.archived", "chat.unarchived"]
    assert (chats / "journey" / "history.jsonl").read_bytes() == chat.log_file.read_bytes()
    assert (workspace.directory / "by-id" / chat.id).readlink() == Path("../chats/journey")


def test_rm_r_trashes_and_mv_restores_with_attachments(
    workspace: Workspace, chat: Chat, tmp_path: Path, note: Path
) -> None:
    run(tmp_path, "cp", note, chat.attachments)
    text = chat.md.read_bytes()
    run(tmp_path, "rm", "-r", chat.directory)
    assert os.listdir(workspace.directory / "chats") == []
    assert workspace.events()[-1]["type"] == "chat.trashed"
    assert sorted(os.listdir(workspace.directory)) == ["archive", "chats", "history.jsonl", "workspace.json"]

    run(tmp_path, "mv", workspace.directory / "trash" / "trip", workspace.directory / "chats")
    assert workspace.events()[-1]["type"] == "chat.restored"
    assert chat.md.read_bytes() == text
    assert (chat.attachments / "note.txt").read_bytes() == NOTE


def test_rmdir_of_a_chat_trashes_it(workspace: Workspace, chat: Chat, tmp_path: Path) -> None:
    run(tmp_path, "rmdir", chat.directory)
    assert workspace.events()[-1]["type"] == "chat.trashed"


def test_cp_r_makes_a_new_chat_with_the_same_history(
    workspace: Workspace, chat: Chat, tmp_path: Path, note: Path
) -> None:
    run(tmp_path, "cp", "-p", note, chat.attachments)
    run(tmp_path, "cp", "-r", chat.directory, workspace.directory / "chats" / "copy")
    copy = workspace.found("copy")
    assert copy.md.read_bytes() == chat.md.read_bytes()
    assert (copy.attachments / "note.txt").read_bytes() == NOTE
    assert [entry.data for entry in copy.log()] == [entry.data for entry in chat.log()]
    assert [(e.origin.actor, e.origin.ts) for e in copy.log() if e.origin] == [(e.actor, e.ts) for e in chat.log()]


def test_symbolic_links_are_for_locks(chat: Chat, tmp_path: Path) -> None:
    run(tmp_path, "ln", "-s", "me@host.1:2", chat.directory / ".#history.md")
    assert (chat.directory / ".#history.md").readlink() == Path("me@host.1:2")
    run(tmp_path, "rm", chat.directory / ".#history.md")
    assert chat.events() == []


def test_scratch_files_survive_a_remount(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    (chat.directory / ".history.md.swp").write_bytes(b"\0swap")
    mounted.remount()
    assert (chat.directory / ".history.md.swp").read_bytes() == b"\0swap"
    assert chat.events() == []


# ---- looking around


def test_find_meets_everything_once_and_nothing_deleted(
    workspace: Workspace, chat: Chat, tmp_path: Path, note: Path
) -> None:
    run(tmp_path, "cp", note, chat.attachments)
    run(tmp_path, "rmdir", workspace.chat("gone").directory)
    found = run(tmp_path, "find", ".", "-mindepth", "1", cwd=workspace.directory).decode().split()
    assert sorted(found) == [
        "./archive",
        "./chats",
        "./chats/trip",
        "./chats/trip/attachments",
        "./chats/trip/attachments/note.txt",
        "./chats/trip/chat.json",
        "./chats/trip/history.jsonl",
        "./chats/trip/history.md",
        "./history.jsonl",
        "./workspace.json",
    ]


def test_grep_r_finds_each_message_once_per_view(workspace: Workspace, chat: Chat, tmp_path: Path) -> None:
    gone = workspace.chat("gone")
    gone.say("hi there, too")
    run(tmp_path, "rm", "-r", gone.directory)
    found = run(tmp_path, "grep", "-rc", "hi there", "chats", cwd=workspace.directory).decode().split()
    assert sorted(found) == ["chats/trip/chat.json:0", "chats/trip/history.jsonl:1", "chats/trip/history.md:1"]


def test_less_shows_a_chat(chat: Chat, tmp_path: Path) -> None:
    with terminal(tmp_path, "less", chat.md) as screen:
        screen.shows("hi there")
        screen.type("q")
        screen.ended()


def test_less_follows_a_chat(chat: Chat, tmp_path: Path) -> None:
    with terminal(tmp_path, "less", "+F", chat.md) as screen:
        screen.shows("hi there")
        chat.say("what came later")
        screen.shows("what came later")
        screen.type("C-c")
        screen.type("q")
        screen.ended()
