"""A few rounds of the soak: what comes and goes leaves nothing. The long form is scripts/soak."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.soak import Figures, soak, table


@pytest.mark.mount
@pytest.mark.container
def test_what_comes_and_goes_leaves_nothing(tmp_path: Path) -> None:
    first, last = soak(tmp_path, 4, sandbox=True, say=lambda _text: None)
    assert all(well for *_, well in first.rows(last)), table(first, last)


def test_what_has_become_more_is_seen() -> None:
    first = Figures(100 << 20, 20, 4, 2, 1, 50, 0)
    assert all(well for *_, well in first.rows(first))
    for name, more in (("memory", 60 << 20), ("descriptors", 20), ("threads", 8), ("processes", 1), ("mounts", 1)):
        last = Figures(**{**vars(first), name: getattr(first, name) + more})
        assert [row[0] for row in first.rows(last) if not row[3]] == [name]
        assert "MORE" in table(first, last)
