"""A file system that is nothing but its session loop: `python -m tests.support.loop_mount MOUNTPOINT fast|plain`.

Its first line of output says which loop runs. What its files do when they are looked at (no attribute is cached):

    plain       nothing
    held        answers once `release` was looked at
    threaded    answers with what a thread found
    ticks       its size is how often a timer of a millisecond has fired
    rounds      its size is how many events of a thread have been taken
    overtaken   its size is the most requests that were answered while such an event waited
    stop        calls pyfuse3.terminate()
    cancel      cancels the session's tasks, and is never answered
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

from fusefs.session_loop import fast_session_loop

NAMES = [b"plain", b"held", b"threaded", b"ticks", b"rounds", b"overtaken", b"stop", b"cancel", b"release"]


class Files(pyfuse3.Operations):
    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        self.released = trio.Event()
        self.ticks = self.requests = self.rounds = self.overtaken = 0
        self.cancel: Callable[[], None] = lambda: None

    async def lookup(self, parent_inode, name, ctx):
        if name not in NAMES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.entry(2 + NAMES.index(name), 0)

    async def getattr(self, inode, ctx):
        self.requests += 1
        if inode == pyfuse3.ROOT_INODE:
            return self.entry(inode, 0)
        match NAMES[inode - 2]:
            case b"held":
                await self.released.wait()
            case b"release":
                self.released.set()
            case b"threaded":
                return self.entry(inode, await trio.to_thread.run_sync(lambda: 17))
            case b"ticks":
                return self.entry(inode, self.ticks)
            case b"rounds":
                return self.entry(inode, self.rounds)
            case b"overtaken":
                return self.entry(inode, self.overtaken)
            case b"stop":
                pyfuse3.terminate()
            case b"cancel":
                self.cancel()
                await trio.sleep_forever()
        return self.entry(inode, 0)

    async def statfs(self, ctx):
        return pyfuse3.StatvfsData()

    def entry(self, inode: int, size: int) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino = pyfuse3.InodeT(inode)
        root = inode == pyfuse3.ROOT_INODE
        found.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755 if root else stat.S_IFREG | 0o644)
        found.st_size = size
        found.attr_timeout = 0
        found.entry_timeout = 3600
        return found

    async def tick(self) -> None:
        while True:
            await trio.sleep(0.001)
            self.ticks += 1

    async def take_events(self) -> None:
        """A pipe becomes readable whenever a thread likes: how many requests are answered until that is noticed?"""
        theirs, ours = os.pipe2(os.O_NONBLOCK)
        asked = [0]
        wanted = threading.Semaphore(0)

        def tell() -> None:
            while wanted.acquire():
                asked[0] = self.requests
                os.write(ours, b".")

        threading.Thread(target=tell, daemon=True).start()
        while True:
            wanted.release()
            await trio.lowlevel.wait_readable(theirs)
            os.read(theirs, 1)
            self.overtaken = max(self.overtaken, self.requests - asked[0])
            self.rounds += 1


async def main(mountpoint: Path, loop: str) -> None:
    files = Files()
    pyfuse3.init(files, str(mountpoint), {*pyfuse3.default_options, "fsname=loop"})
    try:
        async with trio.open_nursery() as nursery:
            files.cancel = nursery.cancel_scope.cancel
            nursery.start_soon(files.tick)
            nursery.start_soon(files.take_events)
            with fast_session_loop(wanted=loop == "fast") as fast:
                sys.stdout.write("fast\n" if fast else "plain\n")
                sys.stdout.flush()
                await pyfuse3.main()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
