"""`chatfs compact` beside a running mount, by another process."""

from __future__ import annotations

from store.codec import decode_lines
from store.model import Seq
from tests.support.mounts import Mounted
from tests.support.waiting import wait_for


def test_a_compaction_shows_at_once_and_leaves_the_text(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    chat.say(*(f"message {number}" for number in range(60)))
    chat.md.write_bytes(chat.md.read_bytes().replace(b"message 7\n", b"message seven\n"))
    text, log = chat.md.read_bytes(), chat.jsonl.read_bytes()
    said = mounted.cli("compact", "demo/trip", "--keep", "5", "--dry-run").stdout
    assert b"would drop 56 events" in said
    assert chat.jsonl.read_bytes() == log
    with chat.jsonl.open("rb") as held:
        assert held.read() == log
        said = mounted.cli("compact", "demo/trip", "--keep", "5").stdout
        assert b"dropped 56 events" in said
        wait_for(lambda: chat.jsonl.read_bytes() == chat.log_file.read_bytes(), what="the shorter log")
        kept = chat.jsonl.read_bytes()
        assert kept.startswith(log.splitlines(keepends=True)[-5])
        held.seek(0)
        assert held.read() == kept
    assert chat.md.read_bytes() == text
    with chat.jsonl.open("ab", buffering=0) as file:
        file.write(b'{"role":"user","content":"after"}\n')
    assert chat.md.read_bytes().startswith(text)
    assert chat.md.read_bytes().endswith(b"after\n")
    chat.md.write_bytes(chat.md.read_bytes().replace(b"message 3\n", b"message three\n"))
    after = chat.md.read_bytes()
    assert b"message three\n" in after
    mounted.remount()
    assert chat.md.read_bytes() == after
    lines = chat.jsonl.read_bytes()
    entries = [
        entry for entry, _ in decode_lines(lines, after=Seq(56), previous_crc=int(log.splitlines()[55][-10:-2], 16))
    ]
    assert [entry.seq for entry in entries] == list(range(57, 65))
    assert mounted.cli("compact", "demo/trip", "--keep", "0").stdout.startswith(b"demo/trip: dropped")
    assert mounted.cli("compact", "demo/trip", "--keep", "0").stdout.startswith(b"demo/trip: nothing to drop")
    wait_for(lambda: chat.md.read_bytes() == after, what="the text")


def test_what_cant_be_compacted_is_one_line(mounted: Mounted) -> None:
    mounted.workspace().chat()
    for words in (("demo/nothing",), ("demo/trip", "--keep", "-1"), ("demo/trip", "--keep", "many")):
        failed = mounted.cli("compact", *words, check=False)
        assert failed.returncode in {1, 2}
        assert failed.stderr.count(b"\n") == 1
