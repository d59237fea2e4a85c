"""`chatfs mount --foreground`: the process that serves a mount.

Concurrency: runs the mount's event loop.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
from dataclasses import replace

import trio

from fusefs.cli import background, mount_records
from fusefs.cli.logged import LogFormatter
from fusefs.cli.mounting import check
from fusefs.cli.output import Progress, complain, write_line
from fusefs.cli.projecting import say
from fusefs.cli.stores import making, migration_bar, say_made
from fusefs.options import MountOptions
from store import registry
from store.driver import Access
from store.errors import ReadOnly, StoreNotFound


def serve(options: MountOptions, pipe: int | None, alive: int | None) -> None:
    """Mount, and serve until that is unmounted. `pipe` and `alive`: see `fusefs.cli.background`."""
    for descriptor in (pipe, alive):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # else fusermount3 would hold it open
    begun = pipe is None
    """Whether stderr is the mount's own."""
    try:
        if begun:
            _log(options)
        check(options)
        options = _prepared(options)
        if pipe is not None:
            background.begin(pipe, options.mountpoint)
            begun = True
            _log(options)
        from fusefs.mount import serve as serve_mount  # noqa: PLC0415 - what of it can't be loaded is told, too

        gc.freeze()  # as for any command: what was imported stays

        def ready() -> None:
            nonlocal pipe
            write_line(f"mounted {options.url} on {options.mountpoint}")
            sys.stdout.flush()
            background.tell(pipe, background.READY)
            pipe = None

        with mount_records.recorded(options.mountpoint, options.url):
            trio.run(functools.partial(serve_mount, options, ready, alive))
    except BaseException as error:
        told = error
        while isinstance(told, BaseExceptionGroup):
            told = told.exceptions[0]
        background.tell(pipe, f"{say(told)}\n".encode(errors="backslashreplace"))
        if not begun and not options.debug:
            background.be_quiet()  # whoever started it says it
        raise


def _log(options: MountOptions) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, handlers=[handler])


def _prepared(options: MountOptions) -> MountOptions:
    """The mount that can be made: of a store that can't be written, a read-only one.

    Here the store is made or migrated, which may take long, and shows its progress. Raises StoreError.
    """
    try:
        trio.run(_open_once, options.url, Access.READ if options.read_only else making(options.url))
    except ReadOnly as error:
        try:
            trio.run(_open_once, options.url, Access.READ)
        except StoreNotFound:
            raise error from None
        complain(f"{error}: it is mounted read-only")
        return replace(options, read_only=True)
    return options


async def _open_once(url: str, access: Access) -> None:
    with Progress() as progress:
        driver = await registry.open_driver(url, access=access, progress=migration_bar(progress))
        progress.clear()
        say_made(driver)
        await driver.aclose()
