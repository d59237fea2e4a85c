"""Following a log while others append to it: each line whole, once, and in order."""

from __future__ import annotations

import contextlib
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.support.mounts import Chat, Mounted, message
from tests.support.programs import clean_environment
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.tools]

WRITERS = 16
LINES_EACH = 25


@contextlib.contextmanager
def started(home: Path, *words: str | Path, output: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, killed at the end if it still runs."""
    with contextlib.ExitStack() as stack:
        stdout = stack.enter_context(output.open("wb")) if output else subprocess.DEVNULL
        process = subprocess.Popen([str(word) for word in words], stdout=stdout, env=clean_environment(home), cwd=home)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def shown(output: Path, chat: Chat) -> bool:
    """Whether the follower has printed all that the log has."""
    return output.read_bytes() == chat.log_file.read_bytes()


@pytest.mark.parametrize("flag", ["-f", "-F"])
def test_tail_follows_another_process(chat: Chat, tmp_path: Path, flag: str) -> None:
    output = tmp_path / "tail"
    with started(tmp_path, "tail", "-n", "+1", "-s", "0.05", flag, chat.jsonl, output=output) as tail:
        wait_for(lambda: shown(output, chat), what="tail to print what is there")
        for number in range(5):
            subprocess.run(["tee", "-a", chat.jsonl], input=message(f"line {number}"), check=True, capture_output=True)
            wait_for(lambda: shown(output, chat), what=f"tail to print line {number}")
        assert tail.poll() is None


@pytest.mark.parametrize("flag", ["-f", "-F"])
def test_tail_follows_sixteen_writers(chat: Chat, tmp_path: Path, flag: str) -> None:
    output = tmp_path / "tail"
    script = 'i=0; while [ $i -lt "$3" ]; do echo "{\\"writer\\":$2,\\"number\\":$i}" >> "$1"; i=$((i+1)); done'
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(tmp_path, "tail", "-n", "+1", "-s", "0.05", flag, chat.jsonl, output=output))
        wait_for(lambda: shown(output, chat), what="tail to print what is there")
        words = ["sh", "-c", script, "sh", chat.jsonl]
        writers = [
            stack.enter_context(started(tmp_path, *words, str(writer), str(LINES_EACH))) for writer in range(WRITERS)
        ]
        assert [writer.wait(60) for writer in writers] == [0] * WRITERS
        wait_for(lambda: shown(output, chat), what="tail to print all lines")

    lines = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 2 + WRITERS * LINES_EACH + 1))
    numbers = defaultdict(list)
    for line in lines[2:]:
        numbers[line["data"]["writer"]].append(line["data"]["number"])
    assert numbers == {writer: list(range(LINES_EACH)) for writer in range(WRITERS)}


def test_tail_follows_what_comes_from_outside_the_mount(mounted: Mounted, tmp_path: Path) -> None:
    chat = mounted.workspace().chat()
    chat.say("hello")
    output = tmp_path / "tail"
    with started(tmp_path, "tail", "-n", "+1", "-s", "0.05", "-f", chat.jsonl, output=output):
        wait_for(lambda: shown(output, chat), what="tail to print what is there")
        mounted.cli("append", "demo/trip", "-", given=message("from elsewhere"))
        assert [event["content"] for event in chat.events()] == ["from elsewhere"]
        wait_for(lambda: shown(output, chat), what="tail to print what the command appended")
