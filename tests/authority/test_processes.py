"""Many on one log, killed, stopped and with wrong clocks: one linear log, whatever happens to them."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.authority.harness import party
from tests.authority.together import together
from tests.authority.trouble import Trouble
from tests.support import torture


def url_of(driver: str, root: Path, choose: random.Random) -> str:
    """A fresh store."""
    root.mkdir(parents=True)
    if driver == "git":
        subprocess.run(["git", "init", "--quiet", "--bare", root / "repository"], check=True)
        return f"git://{root / 'repository'}"
    return f"file://{root / 'store'}" if driver == "file" else f"memory:troubles-{choose.randrange(1 << 32)}"


@pytest.mark.parametrize("driver", ["file", "git"])
@pytest.mark.timeout(7200 if torture.LONG else 180)
def test_random_troubles(tmp_path: Path, driver: str) -> None:
    choose = torture.seeded(f"authority {driver}")
    for number in range(torture.rounds(1, 20)):
        root = tmp_path / str(number)
        url, seed = url_of(driver, root, choose), str(choose.randrange(1 << 32))
        with party(root, seed, url=url, workers=4 if torture.LONG else 3) as working:
            trouble = Trouble(working, choose)
            for _ in range(10 if torture.LONG else 3):
                begun = time.monotonic()
                print(f"run {number}: {trouble.round()}, {time.monotonic() - begun:.1f} s")  # noqa: T201 - for a failure


@pytest.mark.parametrize("driver", ["memory", "file", "git"])
@pytest.mark.timeout(3600 if torture.LONG else 120)
async def test_instances_in_one_process(tmp_path: Path, driver: str) -> None:
    """They come, go properly in the middle of things, and have clocks of their own."""
    choose = torture.seeded(f"authority together {driver}")
    for number in range(torture.rounds(1, 20)):
        root = tmp_path / str(number)
        async with together(root, url_of(driver, root, choose), str(choose.randrange(1 << 32))) as working:
            for _ in range(3):
                working.start()
            await working.go()
            for _ in range(10 if torture.LONG else 3):
                what = choose.choice(["leave", "jump"])
                if what == "leave":
                    await working.leave(choose.choice(working.living))
                    working.start(ahead_ms=choose.choice([0, 0, 120_000, -120_000, 400]))
                else:
                    choose.choice(working.living).clock.ahead_ms = choose.choice([0, 600_000, -600_000, 400, -400])
                await working.go()
            assert await working.finish() == []
