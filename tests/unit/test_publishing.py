"""Two processes that leave history.md and its note at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from store import durability
from store.publishing import NOTE_NAME, TEXT_NAME, publish


def leave(directory: Path, content: bytes, meanwhile: Callable[[int], None] = lambda _step: None) -> None:
    """Publish it; `meanwhile` is called before each change of the directory, with its number."""
    step = 0

    class Steps(durability.System):
        def rename(self, label: str, source: str | Path, target: str | Path) -> None:
            nonlocal step
            step += 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(durability, "system", durability.System())
                meanwhile(step)
            super().rename(label, source, target)

    def put(path: Path) -> int:
        with durability.replacing("rendered.publish", path, durable=False) as fd:
            durability.write_all("rendered.publish", fd, content)
            return os.fstat(fd).st_ino

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durability, "system", Steps())
        publish(directory, put, b"of " + content)


@pytest.mark.parametrize("steps", [{1}, {2}, {1, 2}, {2, 4}, {2, 3, 4, 6}])
def test_text_and_note_are_of_one_process(tmp_path: Path, steps: set[int]) -> None:
    leave(tmp_path, b"one", lambda step: leave(tmp_path, b"two %d" % step) if step in steps else None)
    text, note = (tmp_path / TEXT_NAME).read_bytes(), (tmp_path / NOTE_NAME).read_bytes()
    assert note == b"of " + text
    assert len(list(tmp_path.iterdir())) == 2


def test_who_publishes_between_the_files_of_two_others(tmp_path: Path) -> None:
    def two(step: int) -> None:
        if step == 2:
            leave(tmp_path, b"two", lambda step: leave(tmp_path, b"three") if step == 2 else None)

    leave(tmp_path, b"one", two)
    text, note = (tmp_path / TEXT_NAME).read_bytes(), (tmp_path / NOTE_NAME).read_bytes()
    assert note == b"of " + text
