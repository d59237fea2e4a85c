"""A real mount against a small model of it: whatever is done in whatever order, both show the same.

Every operation that a mount has (`tests.support.machine`), other processes on the same store, remounts, SIGKILL of the
daemon, and system calls of the daemon that fail.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.support import torture
from tests.support.faulty import CALLS, SHORT, Faults
from tests.support.machine import RARELY, MountMachine
from tests.support.machine_refused import RefusedMachine
from tests.support.machine_workspace import WorkspaceMachine
from tests.support.model import ChatModel
from tests.support.mounts import message, mounting
from tests.support.ops import append
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

FAILURES = st.tuples(
    st.sampled_from(["append", "save", "add", "attach", "chat.json", "rename", "scratch"]),
    st.sampled_from(CALLS),
    st.sampled_from([errno.EIO, errno.ENOSPC, errno.EINTR, SHORT]),
    st.sampled_from([0, 0, 0, 1, 2, 5]),
)
"""What is done, which call fails, how, and after how many that don't."""


class TroubledMachine(RefusedMachine, WorkspaceMachine):
    """The rules, and what may go wrong meanwhile."""

    chats = MountMachine.chats
    failures: ClassVar[list[BaseException]]
    """What went wrong, the first first."""

    def teardown(self) -> None:
        if sys.exc_info()[1] is None:
            try:
                super().teardown()
            except Exception as error:
                self.failures.append(error)
                raise
            return
        error = sys.exc_info()[1]
        if isinstance(error, (Exception, pytest.fail.Exception)) and not isinstance(error, HypothesisException):
            self.failures.append(error)

    @rule(really=RARELY, how=st.sampled_from(["unmount", "SIGKILL"]))
    def remount(self, really: bool, how: str) -> None:  # noqa: FBT001 - a rule's draw
        if really:
            if how == "SIGKILL":
                self.mounted.kill()
                self.mounted.start()
            else:
                self.mounted.remount()
            self.there.compare_all()

    @rule(chat=chats, failures=st.lists(FAILURES, min_size=1, max_size=4), number=st.integers(0, 2**40))
    def do_while_a_call_fails(self, chat: ChatModel, failures: list[tuple[str, str, int, int]], number: int) -> None:
        for what, call, code, skip in failures:
            self._do_while_failing(chat, what, call, code, skip, number)
            number += 2

    def _do_while_failing(self, chat: ChatModel, what: str, call: str, code: int, skip: int, number: int) -> None:
        """Done or not done, whole, as its errno says; and it can be done again."""
        faults = Faults(self.mounted.root / "fault")
        before = chat.copy()
        refusal = None
        with faults.one(call, code, skip=skip):
            try:
                self._do(chat, what, number)
            except OSError as error:
                refusal = error
        assert refusal is None or (faults.fired and code != SHORT), refusal
        self._as_before_or_after(chat, before, what, done=refusal is None)
        self._do(chat, what, number + 1)
        self._as_before_or_after(chat, before, what, done=True)

    def _do(self, chat: ChatModel, what: str, number: int) -> None:
        """One operation, noted in the model before it is made."""
        match what:
            case "append":
                append(self._file(chat, "history.jsonl"), message(f"fault {number}"))
            case "save":
                chat.text = f"## user\n\nfault {number}\n".encode()
                self._file(chat, "history.md").write_bytes(chat.text)
            case "add":
                added = f"\n## user\n\nfault {number}\n".encode()
                chat.text += added
                append(self._file(chat, "history.md"), added)
            case "attach":
                chat.mtimes.pop("fault", None)
                chat.put("fault", b"%d" % number * 50_000)
                self._attachment(chat, "fault").write_bytes(b"%d" % number * 50_000)
            case "chat.json":
                chat.labels = [str(number)]
                self._file(chat, "chat.json").write_text(json.dumps({"labels": chat.labels}))
            case "rename":
                old = self.there.directory(chat)
                chat.name = f"fault {number}"
                old.rename(self.there.directory(chat))
            case _:
                chat.scratch["fault~"] = b"%d" % number
                self._file(chat, "fault~").write_bytes(b"%d" % number)

    def _settled(self, chat: ChatModel, what: str) -> None:
        if what == "append":
            # How the log's renderer puts it; that it is what the log says is compared.
            chat.text = self._file(chat, "history.md").read_bytes()
        self.there.compare(chat)

    def _as_before_or_after(self, chat: ChatModel, before: ChatModel, what: str, *, done: bool) -> None:
        """Take the model that fits; a refused operation may have been done all the same, but not in part."""
        after = chat.copy()
        candidates = [after] if done else [before, after]
        failure: Exception | None = None

        def fits() -> bool:
            nonlocal failure
            for candidate in candidates:
                chat.become(candidate)
                try:
                    # What couldn't be committed is kept when the handle is released, some time after close(2).
                    for kept in self.there.directory(chat).glob("*.recovered-*"):
                        kept.unlink()
                    self._settled(chat, what)
                except (AssertionError, OSError, StopIteration) as error:
                    failure = error
                else:
                    return True
            return False

        try:
            wait_for(fits, 5, what="a state as before or after")
        except AssertionError:
            assert failure is not None
            raise failure from None


@pytest.mark.slow
@pytest.mark.timeout(7200 if torture.LONG else 180)
def test_the_mount_does_what_the_model_does(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    with mounting(tmp_path, program="tests.support.faulty") as mounted:
        mounted.expected_trouble.append("(?!.*Traceback)")
        machine = seed(torture.seeded("model").randrange(2**32))(
            type("Machine", (TroubledMachine,), {"mounted": mounted, "failures": failures})
        )
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=torture.rounds(12, 1000),
                    stateful_step_count=40,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],  # steps are slow: a failure is looked into as it was found
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except BaseException as error:
            # A mount that failed once mostly fails again otherwise when Hypothesis repeats the example: that would be
            # all that it tells of.
            if failures:
                raise failures[0] from error
            raise
