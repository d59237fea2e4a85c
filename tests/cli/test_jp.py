"""`chatfs import jp` and `chatfs export jp`."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.jp import EVENTS, ID, METADATA, answer, pretty, said, write

FIXTURE = Path(__file__).parents[1] / "fixtures" / "jp"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of JP with three conversations, one of them archived."""
    path = tmp_path / "project"
    shutil.copytree(FIXTURE, path)
    return path


def test_a_project_is_imported_and_exported_as_it_was(cli: Cli, project: Path):
    result = cli.json("import", "jp", project, "--workspace", "trips")
    assert [(chat["chat"], chat["added"], chat["source_id"]) for chat in result["chats"]] == [
        ("trips/Plan-a-trip", 9, f"jp-c{ID}"),
        ("trips/Shorten-a-sentence", 6, f"jp-c{ID + 5}"),
        ("trips/An-old-one", 5, f"jp-c{ID + 9}"),
    ]
    assert cli.json("chat", "show", "trips/An-old-one")["lifecycle"] == "archived"
    target = project.with_name("target")
    rows = cli.run("export", "jp", "trips", target).splitlines()
    assert [row.split()[:3] for row in rows[1:]] == [
        ["trips/Plan-a-trip", "7", "written"],
        ["trips/Shorten-a-sentence", "5", "written"],
        ["trips/An-old-one", "3", "written"],
    ]
    assert said(target) == said(project)
    for path in FIXTURE.rglob("*.json"):
        assert (target / path.relative_to(FIXTURE)).read_bytes() == path.read_bytes()
    assert all(row.split()[2] == "unchanged" for row in cli.run("export", "jp", "trips", target).splitlines()[1:])
    again = cli.json("import", "jp", target, "--workspace", "trips")
    assert [chat["added"] for chat in again["chats"]] == [0, 0, 0]


def test_a_conversation_grows_on_both_sides(cli: Cli, project: Path):
    (path,) = (project / ".jp" / "conversations").glob(f"{ID}-*")
    cli.run("import", "jp", path, "--workspace", "trips")
    cli.run("append", "trips/Plan-a-trip", "-", given=b'{"role":"user","content":"And in June?"}\n')
    cli.run("export", "jp", "trips/Plan-a-trip", project)
    events = json.loads((path / "events.json").read_bytes())
    assert events[: len(EVENTS)] == EVENTS
    assert [event["type"] for event in events[len(EVENTS) :]] == ["turn_start", "chat_request"]
    (path / "events.json").write_bytes(pretty([*events, answer(90, "Porto.")]))
    complaint = cli.fails("export", "jp", "trips/Plan-a-trip", project)
    assert complaint == (
        f"trips/Plan-a-trip: jp-c{ID} has 1 events there that the chat doesn't have: import it first "
        "(chatfs import jp … --workspace trips), then export"
    )
    cli.run("import", "jp", path, "--workspace", "trips")
    text = cli.run("cat", "trips/Plan-a-trip")
    assert text.index("And in June?") < text.index("Porto.\n", text.index("And in June?"))
    assert "unchanged" in cli.run("export", "jp", "trips/Plan-a-trip", project)


def test_damaged_and_busy_ones_are_named_and_the_others_go_on(cli: Cli, project: Path):
    (damaged,) = (project / ".jp" / "conversations").glob(f"{ID + 5}-*")
    (damaged / "events.json").write_bytes(b'[{"type":"chat_request",\n')
    write(project, conversation=ID + 20, slug="-busy")
    lock = project / ".jp" / "locks" / f"jp-c{ID + 20}.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write('{"pid":4711,"acquired_at":"2026-01-01T00:00:00Z"}')
        file.flush()
        code, out, err = cli.attempt("import", "jp", project, "--workspace", "trips")
    busy = "in use by process 4711 since 2026-01-01T00:00:00Z: try again when that is done"
    assert code == 1
    assert [row.split()[0] for row in out.splitlines()] == ["CHAT", "trips/Plan-a-trip", "trips/An-old-one"]
    assert err.splitlines()[1:] == [
        f"chatfs: {project}: jp-c{ID + 5}: damaged: events.json: cut off in the middle",
        f"chatfs: {project}: jp-c{ID + 20}: {busy}",
        "chatfs: 2 of the sources couldn't be imported: import them again when that is mended",
    ]


def test_what_jp_took_back_is_said(cli: Cli, tmp_path: Path):
    write(tmp_path)
    cli.run("import", "jp", tmp_path, "--workspace", "trips")
    write(tmp_path, EVENTS[:-2])
    code, _, err = cli.attempt("import", "jp", tmp_path, "--workspace", "trips")
    assert (code, err) == (
        0,
        f"chatfs: jp-c{ID}: JP has taken back 2 events: their messages are removed, and stay in the log\n",
    )
    assert "Or Porto" not in cli.run("cat", "trips/Plan-a-trip")


def test_chats_that_jp_never_had(demo: Cli, tmp_path: Path):
    demo.run("chat", "new", "demo/empty")
    target = tmp_path / "project" / ".jp"
    target.parent.mkdir()
    demo.run("export", "jp", "demo", target)
    found = said(tmp_path / "project")
    texts = [[event.get("content", event.get("message")) for event in files["events.json"]] for files in found.values()]
    assert sorted(texts) == [[], [None, "hello", "hi there"]]
    assert all("assistant" in files["base_config.json"] for files in found.values())
    result = demo.json("import", "jp", target, "--workspace", "demo")
    assert sorted((chat["chat"], chat["added"]) for chat in result["chats"]) == [("demo/empty", 2), ("demo/trip", 2)]
    result = demo.json("import", "jp", target, "--workspace", "copies")
    assert len(result["chats"]) == 2
    assert "hi there" in "".join(demo.run("cat", row["chat"]) for row in result["chats"])


def test_a_store_that_cannot_be_written_is_exported_as_far_as_it_goes(cli: Cli, tmp_path: Path):
    """Nothing has to be recorded for what is as JP had it."""
    write(tmp_path / "source", metadata={**METADATA, "labels": {"a": "b"}})
    cli.run("import", "jp", tmp_path / "source", "--workspace", "trips")
    before = {path: path.read_bytes() for path in cli.store.rglob("history.jsonl")}
    cli.run("export", "jp", "trips", tmp_path / "target")
    assert {path: path.read_bytes() for path in cli.store.rglob("history.jsonl")} == before
    assert said(tmp_path / "target") == said(tmp_path / "source")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["export", "jp", "demo/nope", "{tmp}/x"], "there is no chat demo/nope: see chatfs chat ls demo"),
        (["export", "jp", "demo/trip", "{tmp}/no/x"], "demo/trip: {tmp}/no/x: No such file or directory"),
        (["export", "jp", "demo/trip", "{tmp}/file"], "demo/trip: {tmp}/file: not a directory: name a project of JP"),
        (["import", "jp", "{tmp}/nope", "--workspace", "demo"], "{tmp}/nope: No such file or directory"),
    ],
)
def test_what_is_wrong_is_one_line(demo: Cli, tmp_path: Path, words: list[str], complaint: str):
    (tmp_path / "file").touch()
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert demo.fails(*words) == complaint.replace("{tmp}", str(tmp_path))
