"""Which store a command is about, whether it may be made, and what is said of that.

No event loop is needed here: `chatfs mount` only hands the store's URL on.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from fusefs.cli.output import Progress, complain
from store import driver, registry
from store.driver import Access
from store.registry import default_url, user_url

_BAR: Final = 30


def store_url(args: Namespace) -> str:
    """The store that was named: a directory by its absolute URL, so that it is the same from every directory."""
    return absolute_url(args.store or default_url())


def absolute_url(url: str) -> str:
    """The same store's URL, whatever the directory. Raises InvalidInput."""
    return registry.absolute(url)


def making(url: str) -> Access:
    """How that store is opened by what may make it: of one that somebody named, the directory above must be there."""
    return Access.MAKE if url == absolute_url(user_url()) else Access.MAKE_INSIDE


def say_made(opened: driver.Driver) -> None:
    """One line where there was no store: it may have been another that was meant."""
    if opened.made:
        complain(f"made a new store at {registry.directory_of(opened.url)}")


def migration_bar(progress: Progress) -> driver.Progress:
    """What shows on a terminal that a store of an older format is being migrated."""

    def show(done: int, total: int) -> None:
        if total == 0:
            progress.say("waiting for another chatfs, which migrates the store")
        else:
            bar = "#" * (_BAR * done // total)
            progress.say(f"migrating the store [{bar:-<{_BAR}}] {done} of {total}")

    return show
