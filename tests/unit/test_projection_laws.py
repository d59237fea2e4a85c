"""The portable log and the comparison of two copies: laws over arbitrary logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.model import Entry, Millis, Origin, Seq
from store.projection import compare, form, portable
from store.projection.portable import Portable
from tests.unit.strategies import JSON, examples

ACTORS = st.sampled_from(["uid:1000/vim", 'a"b\\c', "ü", "", ev.PROJECTOR]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=5
)
DATA = JSON.map(orjson.dumps) | st.sampled_from([b'{ "a" : 1 }', b'"\\u0061"', b"1.0", b"[\r1]", b'{"a":1,"a":2}'])
TIMES = st.sampled_from([0, 1, 1_795_241_582_000, 253_402_300_799_999])
PORTABLE = st.builds(Portable, TIMES.map(Millis), ACTORS, DATA, st.integers(1, 3))


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Entries as a log may have them: few different ones, so that some repeat."""
    found = []
    for seq in range(1, draw(st.integers(0, 8)) + 1):
        origin = draw(st.none() | st.builds(Origin, st.sampled_from(["x", "y"]), st.just(Millis(5))))
        data = draw(
            st.sampled_from(
                [b"1", b'{"a":1}', b'{"type":"log.reset"}', b'{"type":"chat.changed","projection":"local"}']
            )
        )
        actor = draw(st.sampled_from(["x", "y", ev.PROJECTOR]))
        found.append(Entry(Seq(seq), Millis(5), actor, data, 0, origin))
    return found


@examples
@given(PORTABLE)
def test_a_line_that_is_written_reads_as_the_same(found: Portable) -> None:
    line = portable.encode(found)
    assert b"\n" not in line
    again = portable.decode(line)
    assert again is not None
    assert (again.ts, again.actor, again.repeat) == (found.ts, found.actor, found.repeat)
    assert portable.encode(again) == line or found.data != found.data.strip()


@examples
@given(logs())
def test_taking_a_portable_log_in_gives_the_same_portable_log(entries: list[Entry]) -> None:
    lines = portable.stream(entries)
    assert len(set(lines)) == len(lines)
    copied = list(portable.entries_of(lines))
    assert portable.stream(copied) == lines
    assert portable.read(portable.join(lines)).lines == lines


@examples
@given(st.binary(max_size=60) | st.lists(PORTABLE.map(portable.encode), max_size=3).map(portable.join))
def test_reading_is_total(text: bytes) -> None:
    found = portable.read(text)
    assert found.problem == "" or found.lines == []
    assert portable.read(portable.join(found.lines)).lines == found.lines
    assert portable.stream(portable.entries_of(found.lines)) == found.lines, "what a log says that has taken them in"


@pytest.mark.parametrize(
    "text",
    [b"<<<<<<< HEAD\n", b"=======\n", b">>>>>>> other\n", b'{"ts":1,"actor":"a","data":\n', b"hello\n", b'{"a":1}\n'],
)
def test_nothing_is_taken_from_a_file_that_has_something_else_in_it(text: bytes) -> None:
    good = portable.encode(Portable(Millis(1), "a", b"1")) + b"\n"
    found = portable.read(good + text + good)
    assert found.lines == []
    assert "line 2" in found.problem


def test_a_last_line_without_newline_counts_if_it_is_whole() -> None:
    good = portable.encode(Portable(Millis(1), "a", b"1"))
    assert portable.read(good).lines == [good]
    half = portable.read(good + b"\n" + good[:-3])
    assert (half.lines, half.unfinished, half.problem) == ([good], True, "")


def test_a_converted_line_end_changes_nothing() -> None:
    good = portable.encode(Portable(Millis(1), "a", b"1"))
    assert portable.read(good + b"\r\n").lines == [good]


def test_what_chatfs_says_of_one_copy_is_no_part_of_it_and_what_others_say_is() -> None:
    def entry(actor: str, data: bytes, origin: Origin | None = None) -> Entry:
        return Entry(Seq(1), Millis(1), actor, data, 0, origin)

    own = b'{"type":"log.reset"}'
    assert portable.is_own(entry(ev.PROJECTOR, own))
    assert not portable.is_own(entry("uid:1000/sh", own))
    assert not portable.is_own(entry(ev.PROJECTOR, own, Origin("x", Millis(1))))
    assert portable.is_own(entry("uid:1000/sh", b'{"type":"chat.changed","projection":"local"}'))
    assert not portable.is_own(entry("uid:1000/sh", b'{"type":"chat.changed","projection":"local","title":"t"}'))
    assert portable.is_own(entry("chatfs/compact", b'{"type":"log.compacted","through":1,"state":"x"}'))
    assert portable.is_own(entry("chatfs/fsck", b'{"type":"log.repaired"}'))


LINES = st.lists(st.sampled_from([b"%c" % letter for letter in b"abcdef"]), max_size=6, unique=True)


@examples
@given(LINES, LINES, st.none() | st.integers(0, 6))
def test_comparing_is_total_and_loses_no_line(durable: list[bytes], project: list[bytes], written: int | None) -> None:
    if written is not None and written > len(durable):
        written = len(durable)
    both = compare.combine(durable, project, written)
    if both is None:
        assert set(durable) - set(project)
        assert set(project) - set(durable)
        return
    assert len(set(both)) == len(both)
    assert set(both) == set(durable) | set(project)
    assert compare.combine(both, both, None) == both
    # Who has done it once finds nothing more to do.
    assert compare.combine(both, project, written) == both
    if set(durable) <= set(project):
        assert both == project


@pytest.mark.parametrize(
    ("durable", "project", "written", "both"),
    [
        ("abc", "abc", None, "abc"),
        ("ab", "abc", None, "abc"),
        ("abc", "ab", None, "abc"),
        ("", "ab", None, "ab"),
        ("abc", "", None, "abc"),
        ("abc", "ac", None, "abc"),
        ("ab", "acb", None, "acb"),
        ("ab", "ba", None, "ba"),
        ("abc", "ba", None, "bac"),
        ("abx", "acb", 2, "acbx"),
        ("ax", "ab", 1, "abx"),
        ("ax", "ab", 2, None),
        ("ax", "ab", None, None),
    ],
)
def test_the_table_of_streams(durable: str, project: str, written: int | None, both: str | None) -> None:
    def lines(text: str) -> list[bytes]:
        return [letter.encode() for letter in text]

    assert compare.combine(lines(durable), lines(project), written) == (None if both is None else lines(both))


@pytest.mark.parametrize(
    ("durable_ms", "project_ns", "wins"),
    [(5, 4_999_999, False), (5, 5_000_000, False), (5, 5_999_999, False), (5, 6_000_000, True), (0, 0, False)],
)
def test_the_newer_copy_wins_and_a_tie_is_the_durable_ones(durable_ms: int, project_ns: int, *, wins: bool) -> None:
    assert compare.project_wins(durable_ms, project_ns) is wins


OLD = {"name": "n", "title": "", "labels": [], "place": "chats"}


@pytest.mark.parametrize(
    ("ours", "theirs", "base", "newer", "name"),
    [
        ("n", "n", "n", True, "n"),
        ("a", "n", "n", True, "a"),
        ("n", "b", "n", False, "b"),
        ("a", "b", "n", True, "b"),
        ("a", "b", "n", False, "a"),
        ("a", "b", None, True, "b"),
        ("a", "b", None, False, "a"),
        ("a", None, "n", True, "a"),
    ],
)
def test_the_table_of_metadata(ours: str, theirs: str | None, base: str | None, *, newer: bool, name: str) -> None:
    durable, written = OLD | {"name": ours}, None if base is None else OLD | {"name": base}
    project = {} if theirs is None else OLD | {"name": theirs}
    settled = compare.settle(durable, project, written, newer=newer)
    assert settled == OLD | {"name": name}


def test_each_field_is_that_of_who_changed_it() -> None:
    ours, theirs = OLD | {"name": "a"}, OLD | {"labels": ["x"]}
    assert compare.settle(ours, theirs, OLD, newer=False) == OLD | {"name": "a", "labels": ["x"]}


CHAT = "0199b2c3-d4e5-7000-8000-0000000000ff"


def test_chat_json_survives_a_merge_that_takes_both_sides_lines() -> None:
    text = form.chat_json(CHAT, OLD)  # type: ignore[arg-type]
    lines = text.splitlines(keepends=True)
    at = next(index for index, line in enumerate(lines) if b'"name"' in line)
    merged = b"".join([*lines[: at + 1], b'  "name": "theirs",\n', *lines[at + 1 :]])
    found = form.parse_chat_json(merged)
    assert found is not None
    assert (found.id, found.fields) == (CHAT, OLD | {"name": "theirs"})


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b'{"version":1,"id":"x"}', b'{"version":2,"id":"%b"}' % CHAT.encode(), b"<<<<<<<"]
)
def test_what_is_no_chat_json_says_nothing(text: bytes) -> None:
    assert form.parse_chat_json(text) is None


def test_fields_that_cant_be_are_left_out() -> None:
    text = orjson.dumps({"version": 1, "id": CHAT, "name": "../x", "title": 5, "labels": "a", "place": "trash"})
    found = form.parse_chat_json(text)
    assert found is not None
    assert found.fields == {}


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("trip", "trip"),
        ("Über die Brücke!", "uber-die-brucke"),
        ("../..", "chat"),
        ("日本", "chat"),
        ("a" * 99, "a" * 60),
    ],
)
def test_a_directory_is_called_by_when_and_what(name: str, slug: str) -> None:
    made = form.directory(CHAT, name)  # type: ignore[arg-type]
    assert made == f"20251005T050642Z-{slug}"


@examples
@given(st.text(max_size=30), st.uuids())
def test_any_name_gives_a_plain_directory_name(name: str, chat: object) -> None:
    for made in form.directories(str(chat), name):  # type: ignore[arg-type]
        assert made.isascii()
        assert "/" not in made
        assert not made.startswith(".")
        assert len(made) < 120


# ---- people who exchange their lines through git


@dataclass(frozen=True, eq=False)
class Commit:
    """What the file has, and the commits before."""

    lines: tuple[bytes, ...]
    before: frozenset[Commit]

    def has(self, other: Commit) -> bool:
        return other is self or other in self.before


def child(lines: Sequence[bytes], *parents: Commit) -> Commit:
    return Commit(tuple(lines), frozenset(parents).union(*(parent.before for parent in parents)))


def union(ours: Commit, theirs: Commit) -> list[bytes]:
    """What git's union merge does where both have added lines: in each place ours, then theirs."""
    base = max((commit.lines for commit in ours.before | {ours} if theirs.has(commit)), key=len)
    merged: list[bytes] = []
    for mine, other in zip(places(ours.lines, base), places(theirs.lines, base), strict=True):
        merged += [*mine, *(line for line in other if line not in mine)]
    return merged


def places(lines: Sequence[bytes], base: Sequence[bytes]) -> list[list[bytes]]:
    """The lines cut before each of the base's, which all are there in that order."""
    found: list[list[bytes]] = [[]]
    rest = list(base)
    for line in lines:
        if rest and line == rest[0]:
            found.append([rest.pop(0)])
        else:
            found[-1].append(line)
    assert not rest, "a projection never takes lines away"
    return found


@dataclass
class Person:
    """Their durable copy, their work tree, how far that was written, and the commit that they are at."""

    name: str
    commit: Commit
    durable: list[bytes] = field(default_factory=list)
    project: list[bytes] = field(default_factory=list)
    written: int = 0
    said: int = 0

    def append(self) -> None:
        self.said += 1
        self.durable.append(f"{self.name}{self.said}".encode())

    def reconcile(self) -> None:
        both = compare.combine(self.durable, self.project, self.written)
        assert both is not None, "a line would have gone into another chat"
        self.durable, self.project, self.written = both, list(both), len(both)

    def pull(self, shared: Commit) -> Commit:
        """Commit, fetch, merge; what is then to be pushed."""
        if tuple(self.project) != self.commit.lines:
            self.commit = child(self.project, self.commit)
        if shared.has(self.commit):
            self.commit = shared
        elif not self.commit.has(shared):
            self.commit = child(union(self.commit, shared), self.commit, shared)
        self.project = list(self.commit.lines)
        return self.commit


@examples
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["append", "race", "pull", "push"])), max_size=40))
def test_people_who_exchange_lines_end_with_one_order(steps: list[tuple[int, str]]) -> None:
    """Whoever appends, merges and pushes when, also where git is faster than the projection."""
    shared = Commit((), frozenset())
    people = [Person(str(number), shared) for number in range(3)]
    last = [(who, what) for what in ("push", "pull") for who in range(3)]
    for who, what in [*steps, *last]:
        person = people[who]
        if what in {"append", "race"}:
            person.append()
        if what != "race":
            person.reconcile()
        if what != "append":
            merged = person.pull(shared)
            if what == "push":
                shared = merged
            person.reconcile()
    said = {f"{person.name}{number}".encode() for person in people for number in range(1, person.said + 1)}
    for person in people:
        assert set(person.durable) == said
        assert person.durable == person.project == list(shared.lines)
