"""A person: a store, a project in a real git repository, and what binds both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from store.chat import Chat
from store.library import Store, open_store
from store.projection import binding as bindings
from store.projection.chat_sync import Report
from store.projection.project import Project, open_project
from store.workspace import Workspace

ME = "uid:1000/test"
_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "LC_ALL": "C",
    "GIT_EDITOR": "true",
}


def git(directory: Path, *words: str, check: bool = True) -> str:
    """Run git there; its output."""
    name = directory.name
    who = {
        f"GIT_{role}_{what}": f"{name}@x" if what == "EMAIL" else name
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        ["git", *words], cwd=directory, env=_ENVIRONMENT | who, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"git {words}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Person:
    """`reconcile` brings store and project together, as a start does."""

    store: Store
    workspace: Workspace
    project: Project
    directory: Path

    @property
    def chats(self) -> Path:
        return self.directory / ".chatfs" / "chats"

    async def new(self, name: str, *texts: str) -> Chat:
        chat = await self.workspace.create_chat(name, ME)
        for text in texts:
            await say(chat, text)
        return chat

    async def chat(self, name: str) -> Chat:
        return await self.workspace.chat(name)

    async def reconcile(self, *, sound: bool = True) -> Report:
        report = await self.project.reconcile()
        assert not sound or not report.problems, report.problems
        return report

    def where(self, chat: Chat) -> Path:
        """The chat's directory."""
        (found,) = [path.parent for path in self.chats.glob("[!.]*/chat.json") if chat.id in path.read_text()]
        return found

    def lines(self, chat: Chat) -> list[dict[str, Any]]:
        """What its history.jsonl says."""
        return [orjson.loads(line) for line in (self.where(chat) / "history.jsonl").read_bytes().splitlines()]

    def commit(self, message: str = "chats") -> None:
        git(self.directory, "add", "-A")
        git(self.directory, "commit", "-q", "--allow-empty", "-m", message)


async def say(chat: Chat, text: str) -> None:
    await chat.append_events([{"role": "user", "content": text}], ME)


async def texts(chat: Chat) -> list[str]:
    return [message.content.strip() for message in await chat.messages()]


@asynccontextmanager
async def person(url: str, directory: Path) -> AsyncIterator[Person]:
    """Somebody with a store at `url` and a project in `directory`, which is bound, if it isn't yet."""
    async with open_store(url) as store:
        binding = bindings.find(directory)
        if binding is None:
            workspace = await store.create_workspace("demo", ME)
            binding = bindings.write(directory, workspace.id)
        workspace = await bindings.workspace_of(store, binding, ME)
        await bindings.remember(store, binding)
        async with open_project(workspace, binding) as project:
            yield Person(store, workspace, project, directory)


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below: inode, mtime and bytes."""
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file() and ".git/" not in str(path)
    }


Change = Callable[[Person], Any]
