"""rename(2): what moving a name means between the kinds of directories.

Scratch over a projected file commits its bytes. A projected file moved away (an editor's backup) leaves a scratch copy
and is hidden until it is created again. Attachments are renamed in the log. What can't be done without copying is
EXDEV, so that mv(1) copies.

A scratch file's inode, which the kernel now believes to stand at the new name, becomes the node that really is there;
the kernel is told to look the name up again.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from fusefs.nodes.attachment_file import AttachmentFile
from fusefs.nodes.attachments import AttachmentsDirectory, checked_name
from fusefs.nodes.base import Directory, Node, refuse, text_name
from fusefs.nodes.chat_dir import ChatDirectory, ScratchDirectory
from fusefs.nodes.log_file import LogFile
from fusefs.nodes.projected import ProjectedFile
from fusefs.nodes.scratch import ScratchFile
from fusefs.nodes.workspace_dir import PlaceDirectory, WorkspaceDirectory
from store import attaching
from store.model import AttachmentId, uuid7

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.mount import Mount

_PIECE = 1 << 20


class Moves:
    """The renames of one mount."""

    __slots__ = ("_mount",)

    def __init__(self, mount: Mount) -> None:
        self._mount = mount

    # ---- chats and workspaces

    async def from_place(
        self, source: PlaceDirectory, name: bytes, target: Directory, new: bytes, caller: Caller
    ) -> None:
        """A chat: renamed, archived, unarchived, trashed or restored."""
        if not isinstance(target, PlaceDirectory) or target.view.workspace is not source.view.workspace:
            raise refuse(errno.EXDEV)
        node = await source.lookup(name)
        assert isinstance(node, ChatDirectory)
        await source.view.workspace.load()
        text_name(new)
        taken = target.find(new)
        if taken is not None and taken.id != node.chat:
            raise refuse(errno.ENOTEMPTY)
        node.placed(target, new)
        try:
            await source.view.workspace.move_chat(node.chat, target.place, text_name(new), caller.actor)
        except BaseException:
            node.placed(source, name)
            raise

    async def from_workspace(
        self, source: WorkspaceDirectory, name: bytes, target: Directory, new: bytes, caller: Caller
    ) -> None:
        """Scratch files beside workspace.json, and a save of that by a rename over it."""
        await self._from_scratch_directory(source, name, target, new, caller)

    async def from_chat(
        self, source: ChatDirectory, name: bytes, target: Directory, new: bytes, caller: Caller
    ) -> None:
        """What is in a chat's directory."""
        if isinstance(target, AttachmentsDirectory) and target.view is source.view:
            node = await source.lookup(name)
            if not isinstance(node, ScratchFile):
                raise refuse(errno.EXDEV)
            await self._scratch_to_attachments(source, node, target, new, caller)
            return
        await self._from_scratch_directory(source, name, target, new, caller)

    async def _from_scratch_directory(
        self, source: ScratchDirectory, name: bytes, target: Directory, new: bytes, caller: Caller
    ) -> None:
        if target is not source:
            raise refuse(errno.EXDEV)
        node = await source.lookup(name)
        over = await self._mount.present(target, new)
        if isinstance(node, ScratchFile):
            if new not in source.fixed:
                # Nobody measures meanwhile, and finds it at neither place.
                async with source.quota.taking(int, tidying=True):
                    if isinstance(over, ScratchFile):
                        over.loses_name()
                    os.rename(source.area.path(name), source.area.path(new))
                    node.placed(source, new)
            else:
                projected = over if over is not None else source.projected(new)
                await self._commit_scratch(source, node, projected, caller)
        elif isinstance(node, ProjectedFile | LogFile):
            if new in source.fixed:
                raise refuse(errno.EPERM)
            await self._set_aside(source, node, name, new)
        else:
            raise refuse(errno.EPERM)
        self._mount.notifier.attributes(source)

    async def _commit_scratch(
        self, source: ScratchDirectory, node: ScratchFile, projected: Node, caller: Caller
    ) -> None:
        """A scratch file takes the place of a projected one: its bytes are saved."""
        name = node.name
        if not source.area.is_file(name):
            raise refuse(errno.EPERM)
        if isinstance(projected, LogFile):
            await self._replace_log(source, node, projected, caller)
        elif isinstance(projected, ProjectedFile):
            await projected.replace(caller, source.area.pieces(name, _PIECE))
            await projected.view.sync()
        else:
            raise refuse(errno.EPERM)
        node.loses_name()
        source.area.unlink(name)
        source.show(projected.name)
        self._became(source, node, projected)

    async def _replace_log(self, source: ScratchDirectory, node: ScratchFile, log: LogFile, caller: Caller) -> None:
        """An empty log takes the lines of a file that is renamed over it; another doesn't."""
        handle = await log.open(os.O_WRONLY | os.O_TRUNC, caller)
        offset = 0
        for piece in source.area.pieces(node.name, _PIECE):
            data = piece
            while data:
                taken = await handle.write(offset, data)
                offset += taken
                data = data[taken:]
        await handle.flush()
        await handle.release()

    async def _set_aside(
        self, source: ScratchDirectory, node: ProjectedFile | LogFile, name: bytes, new: bytes
    ) -> None:
        """A projected file is moved to a scratch name: a copy is left there."""
        if isinstance(node, ProjectedFile):
            await node.settle()
        handle_size = (await node.attributes()).st_size
        async with source.quota.taking(lambda: handle_size):
            await self._copy(source, node, new, handle_size)
        await source.hide(name)
        self._mount.notifier.entry(source, new)

    async def _copy(self, source: ScratchDirectory, node: ProjectedFile | LogFile, new: bytes, until: int) -> None:
        descriptor = source.area.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            offset = 0
            while offset < until:
                size = min(_PIECE, until - offset)
                if isinstance(node, ProjectedFile):
                    piece = await node.shown(offset, size)
                else:
                    piece = await node.owner.read_text(offset, size)
                if not piece:
                    break
                offset += os.pwrite(descriptor, piece, offset)
        finally:
            os.close(descriptor)

    def _became(self, directory: Directory, node: Node, real: Node) -> None:
        """The kernel believes `node` to be at `real`'s place."""
        if node.lookups:
            node.became = real
            directory.children.pop(node.name, None)
            self._mount.notifier.attributes(node)
        self._mount.notifier.entry(real.parent or directory, real.name)

    # ---- attachments

    async def from_attachments(
        self, source: AttachmentsDirectory, name: bytes, target: Directory, new: bytes, caller: Caller
    ) -> None:
        """Attachments, and the temporary files beside them."""
        node = await source.lookup(name)
        if isinstance(node, ScratchFile):
            if target is source and new.startswith(b"."):
                over = await self._mount.present(target, new)
                async with source.view.quota.taking(int, tidying=True):  # as in `_from_scratch_directory`
                    if isinstance(over, ScratchFile):
                        over.loses_name()
                    os.rename(source.view.scratch_attachments.path(name), source.view.scratch_attachments.path(new))
                    node.placed(source, new)
            elif isinstance(target, AttachmentsDirectory) and target is source:
                await self._scratch_to_attachments(source, node, target, new, caller)
            else:
                raise refuse(errno.EXDEV)
            return
        assert isinstance(node, AttachmentFile)
        if not isinstance(target, AttachmentsDirectory) or new.startswith(b"."):
            raise refuse(errno.EXDEV)
        checked_name(new)
        await node.settle()
        if target is source:
            await self._rename_attachment(source, node, new, caller)
        else:
            await self._move_attachment(source, node, target, new, caller)

    async def _rename_attachment(
        self, directory: AttachmentsDirectory, node: AttachmentFile, new: bytes, caller: Caller
    ) -> None:
        over = await self._mount.present(directory, new)
        old = node.name
        if isinstance(over, AttachmentFile):
            async with over.lock:
                await over.lose_name()
        directory.view.pending.pop(old, None)
        node.placed(directory, new)
        try:
            await directory.view.chat.rename_attachment(text_name(old), text_name(new), caller.actor)
        except BaseException:
            node.placed(directory, old)
            if isinstance(over, AttachmentFile):
                over.gone = None
            raise

    async def _move_attachment(
        self,
        source: AttachmentsDirectory,
        node: AttachmentFile,
        target: AttachmentsDirectory,
        new: bytes,
        caller: Caller,
    ) -> None:
        """To another chat: named there first, then removed here, so that no moment is without it."""
        found = await node.attachment()
        if found is None:
            raise refuse(errno.ENOENT)
        if target.view.chat.workspace is not source.view.chat.workspace:
            raise refuse(errno.EXDEV)
        identity = await self._identity_at(target, new)
        made = await target.view.chat.put_attachment(
            text_name(new), found.ref, caller.actor, mode=found.mode, mtime_ns=found.mtime_ns, identity=identity
        )
        await source.unlink(node.name, caller)
        self._became(source, node, target.node_of(made))

    async def _identity_at(self, directory: AttachmentsDirectory, name: bytes) -> AttachmentId | None:
        """The id for what is put at `name` now: None for that of the attachment there, if nobody has it open."""
        over = await self._mount.present(directory, name)
        if isinstance(over, AttachmentFile):
            if not over.handles:
                return None
            async with over.lock:
                await over.lose_name()
        return AttachmentId(uuid7())

    async def _scratch_to_attachments(
        self,
        source: ChatDirectory | AttachmentsDirectory,
        node: ScratchFile,
        target: AttachmentsDirectory,
        new: bytes,
        caller: Caller,
    ) -> None:
        """A temporary file gets its real name: its bytes become an attachment."""
        area = node.area
        if new.startswith(b".") or not area.is_file(node.name):
            raise refuse(errno.EXDEV)
        text = checked_name(new)
        backing = os.lstat(area.path(node.name))
        chat = target.view.chat
        # Not counted, and without a name: what is charged is the file, which stays if this is interrupted.
        staging = chat.stage("", counted=False)
        try:
            offset = 0
            for piece in area.pieces(node.name, _PIECE):
                offset += staging.write(offset, piece)
            mode = backing.st_mode & 0o777

            async def done() -> None:
                node.loses_name()
                area.unlink(node.name)

            made = await attaching.commit(
                chat,
                text,
                staging,
                caller.actor,
                mode=None if mode == 0o600 else mode,
                mtime_ns=backing.st_mtime_ns,
                identity=await self._identity_at(target, new),
                durable=self._mount.strict,
                done=done,
            )
        finally:
            await staging.discard()
        await self._mount.synced(target.view.sync)
        self._became(source, node, target.node_of(made))
