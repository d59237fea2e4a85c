"""`chatfs export jp`, killed by SIGKILL at any system call and run again."""

from __future__ import annotations

import json
import random
import shutil
import signal

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_moving_killed import run
from tests.support.jp import EVENTS, ID, events_in, metadata_in, write


@pytest.mark.parametrize("new", ["new", ""])
def test_no_file_is_ever_half_and_the_next_export_goes_on(cli: Cli, new: str) -> None:
    source, target = cli.root / "source", cli.root / "target"
    write(source)
    cli.run("import", "jp", source, "--workspace", "trips")
    more = b'{"role":"user","content":"And in June?"}\n{"type":"chat.changed","title":"June"}\n'
    cli.run("append", "trips/Plan-a-trip", "-", given=more)
    store = cli.store.with_name("before")
    shutil.copytree(cli.store, store)

    def again() -> None:
        shutil.rmtree(target, ignore_errors=True)
        if not new:
            shutil.copytree(source, target)
        shutil.rmtree(cli.store)
        shutil.copytree(store, cli.store)

    again()
    code, err = run(cli, 0, "export", "jp", "trips", target)
    assert code == 0, err
    total = int(err.split()[-1])
    expected = events_in(target)
    assert [event.get("content") for event in expected[len(EVENTS) :]] == [None, "And in June?"]
    choose = random.Random(total)
    for part in range(6):  # the store's own calls come first
        moment = choose.randint(1 + total // 3 + total * part // 9, total // 3 + total * (part + 1) // 9)
        again()
        code, err = run(cli, moment, "export", "jp", "trips", target)
        assert code == -signal.SIGKILL, err
        for file in target.glob(".jp/conversations/[0-9]*/*.json"):
            assert json.loads(file.read_bytes())
        found = list(target.glob(".jp/conversations/[0-9]*/events.json"))
        assert len(found) == 1 or (new and not found)
        if found:
            assert events_in(target) in (EVENTS, expected)
        cli.run("export", "jp", "trips", target)
        assert events_in(target) == expected
        assert metadata_in(target)["title"] == "June"
        left = {str(path.relative_to(target / ".jp")) for path in target.rglob("*") if path.is_file()}
        assert left == {f"conversations/{ID}-june/{name}.json" for name in ("metadata", "events", "base_config")}, (
            moment
        )
