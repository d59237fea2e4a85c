"""The checker itself: it agrees with the definition, accepts every right history and finds every kind of wrong one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.linearizable import Append, Followed, Logged, Operation, Outcome, Read, check, digest

# ---- the definition, by trying every order


def legal(order: tuple[Operation, ...], log: list[str]) -> bool:
    """Whether these operations, one after the other, give these answers and this log."""
    words: list[str] = []
    for operation in order:
        if isinstance(operation, Read):
            if operation.length != len(words) or operation.digest != digest(words[operation.since :]):
                return False
        elif isinstance(operation, Append):
            matches = operation.expected is None or operation.expected == len(words)
            if operation.outcome is Outcome.REFUSED:
                if operation.current is not None and (matches or operation.current != len(words)):
                    return False
                continue
            if not matches:
                return False
            words += operation.words
            if operation.outcome is Outcome.DONE and operation.last != len(words):
                return False
    return words == log


def in_real_time(order: tuple[Operation, ...]) -> bool:
    """Whether none stands behind one that began after it had ended."""
    for earlier, later in itertools.combinations(order, 2):
        given_up = isinstance(later, Append) and later.outcome is Outcome.UNKNOWN
        if not given_up and later.ended < earlier.begun:
            return False
    return True


def linearizable(log: list[str], history: list[Operation]) -> bool:
    unknown = [at for at, each in enumerate(history) if isinstance(each, Append) and each.outcome is Outcome.UNKNOWN]
    for count in range(len(unknown) + 1):
        for dropped in itertools.combinations(unknown, count):
            kept = [each for at, each in enumerate(history) if at not in dropped]
            if any(legal(order, log) and in_real_time(order) for order in itertools.permutations(kept)):
                return True
    return False


@st.composite
def small_histories(draw: st.DrawFn) -> tuple[list[Logged], list[Operation]]:
    """Up to five operations with answers that may be right: about half of them are linearizable."""
    history: list[Operation] = []
    appends = draw(st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=3))
    order = draw(st.permutations(range(len(appends))))
    log: list[Logged] = []
    times = st.tuples(st.integers(0, 9), st.integers(0, 6))
    ends = {}
    for number in order:
        outcome = draw(st.sampled_from([Outcome.DONE] * 4 + [Outcome.UNKNOWN, Outcome.REFUSED]))
        words = tuple(f"{number}{part}" for part in "ab"[: appends[number]])
        there = draw(st.integers(0, 9)) < {Outcome.DONE: 10, Outcome.UNKNOWN: 5, Outcome.REFUSED: 1}[outcome]
        before = len(log)
        if there:
            log += [Logged(word, len(words) - at) for at, word in enumerate(words, 1)]
        ends[number] = (words, outcome, before, len(log))
    for number, (words, outcome, before, last) in ends.items():
        begun, took = draw(times)
        refused = outcome is Outcome.REFUSED
        expected = draw(st.sampled_from([None, None, before, before + 1]))
        current = draw(st.integers(0, len(log))) if refused and expected is not None else None
        off = draw(st.sampled_from([0] * 9 + [1]))
        history.append(
            Append(f"p{number}", words, begun, begun + took, outcome, last + off, expected=expected, current=current)
        )
    words_logged = [entry.word for entry in log]
    for number in range(draw(st.integers(0, 2))):
        begun, took = draw(times)
        length = draw(st.integers(0, len(log)))
        seen = digest(words_logged[:length])
        history.append(Read(f"r{number}", begun, begun + took, length, 0, seen))
    return log, history


@settings(max_examples=400, deadline=None)
@given(small_histories())
def test_it_agrees_with_the_definition(small):
    log, history = small
    wrong = check(log, history)
    assert (not wrong) == linearizable([entry.word for entry in log], history), wrong


# ---- large right histories, and what is wrong in one place


class Made:
    """A history as it happens: each operation takes effect at some moment between its beginning and its end."""

    def __init__(self, seed: int, *, processes: int = 4, steps: int = 60) -> None:
        self.choose = random.Random(seed)
        self.log: list[Logged] = [Logged("given-1", 1), Logged("given-2")]
        self.given = len(self.log)
        self.history: list[Operation] = []
        self.now = 0
        self._ready = dict.fromkeys(range(processes), 0)
        self._deliveries: list[tuple[int, int, str]] = []
        for number in range(steps):
            self._step(number)
        for since in (None, self.given, 5):
            self._follow(since)

    def _step(self, number: int) -> None:
        """Somebody's next operation takes effect now; it began before, and ends later."""
        self.now += self.choose.randrange(1, 20)
        who = min(self._ready, key=self._ready.__getitem__)
        begun = self.choose.randint(min(self._ready[who] + 1, self.now), self.now)
        self.now = max(self.now, begun)
        ended = self.now + self.choose.randrange(1, 40)
        self._ready[who] = ended
        kind = self.choose.choice(["append"] * 5 + ["read", "length", "refused", "conflict", "lost", "killed"])
        words = tuple(f"{who}-{number}-{part}" for part in "abc"[: self.choose.choice([1, 1, 2, 3])])
        head = len(self.log)
        expected = self.choose.choice([None, head])
        if kind in {"append", "killed"}:
            self.log += [Logged(word, len(words) - at) for at, word in enumerate(words, 1)]
            self._deliveries += [(self.now, seq, word) for seq, word in enumerate(words, head + 1)]
        match kind:
            case "append":
                done = Append(f"p{who}", words, begun, ended, Outcome.DONE, len(self.log), expected)
            case "refused":
                done = Append(f"p{who}", words, begun, ended, Outcome.REFUSED)
            case "conflict":
                done = Append(f"p{who}", words, begun, ended, Outcome.REFUSED, expected=max(head - 1, 0), current=head)
            case "lost" | "killed":
                # Who was killed may take effect after it was given up.
                given_up = self.choose.randint(begun, ended)
                done = Append(f"p{who}", words, begun, given_up, Outcome.UNKNOWN, expected=expected)
            case _:
                since = self.choose.randrange(head)
                seen = digest(entry.word for entry in self.log[since:]) if kind == "read" else None
                self.history.append(Read(f"p{who}", begun, ended, head, since, seen))
                return
        self.history.append(done)

    def _follow(self, since: int | None) -> None:
        if since is None:
            starts = [at for at, (_, seq, _) in enumerate(self._deliveries) if not self.log[seq - 2].more]
            began = self.choose.choice(starts[: len(starts) // 2])
            delivered = self._deliveries[began:]
            begun = self._deliveries[began - 1][0] if began else 0
            self.history.append(Followed("live", begun, begun, None, tuple(delivered), complete=True))
            return
        delivered = [(when + 3, seq, word) for when, seq, word in self._deliveries if seq > since]
        for seq in range(since + 1, self.given + 1):
            delivered.insert(seq - since - 1, (0, seq, self.log[seq - 1].word))
        self.history.append(Followed(f"from {since}", 0, 0, since, tuple(delivered), complete=True))

    def check(self) -> list[str]:
        return check(self.log, self.history, given=self.given)

    def pick(self, wanted: Callable[[Operation], bool]) -> int:
        return self.choose.choice([at for at, operation in enumerate(self.history) if wanted(operation)])

    def done(self, *, batch: int = 1, expected: bool = False) -> int:
        """Some acknowledged append."""
        return self.pick(
            lambda each: (
                isinstance(each, Append)
                and each.outcome is Outcome.DONE
                and len(each.words) >= batch
                and (each.expected is not None or not expected)
            )
        )


def is_read(operation: Operation) -> bool:
    return isinstance(operation, Read)


def is_refused(operation: Operation) -> bool:
    return isinstance(operation, Append) and operation.outcome is Outcome.REFUSED


def is_subscription(operation: Operation) -> bool:
    return isinstance(operation, Followed) and len(operation.delivered) > 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_right_histories_are_accepted(seed):
    assert Made(seed).check() == []


def an_acknowledged_entry_is_lost(made: Made) -> None:
    operation = made.history[made.done()]
    made.log = [entry for entry in made.log if entry.word not in operation.words]


def the_log_lost_its_end(made: Made) -> None:
    last = max(each.last for each in made.history if isinstance(each, Append))
    made.log = made.log[: last - 1]


def an_entry_is_there_twice(made: Made) -> None:
    operation = made.history[made.done()]
    made.log += [Logged(word, len(operation.words) - at) for at, word in enumerate(operation.words, 1)]


def an_entry_nobody_appended(made: Made) -> None:
    made.log.append(Logged("nobody's"))


def entries_of_a_batch_are_swapped(made: Made) -> None:
    at = made.history[made.done(batch=2)].last
    made.log[at - 2], made.log[at - 1] = made.log[at - 1], made.log[at - 2]


def half_a_batch_is_there(made: Made) -> None:
    at = made.history[made.done(batch=2)].last
    del made.log[at - 1]


def a_batch_is_two(made: Made) -> None:
    at = made.history[made.done(batch=2)].last
    made.log[at - 2] = replace(made.log[at - 2], more=0)


def an_answer_is_off_by_one(made: Made) -> None:
    at = made.done()
    made.history[at] = replace(made.history[at], last=made.history[at].last + made.choose.choice([-1, 1]))


def a_refused_one_is_there(made: Made) -> None:
    operation = made.history[made.pick(is_refused)]
    made.log += [Logged(word, len(operation.words) - at) for at, word in enumerate(operation.words, 1)]


def a_refused_one_was_right(made: Made) -> None:
    at = made.pick(lambda each: is_refused(each) and each.current is not None)
    made.history[at] = replace(made.history[at], expected=made.history[at].current)


def an_expectation_did_not_hold(made: Made) -> None:
    at = made.done(expected=True)
    made.history[at] = replace(made.history[at], expected=made.history[at].expected + 1)


def a_read_is_old(made: Made) -> None:
    """It ends up where the log was before an append that had been acknowledged when the read began."""
    done = made.history[made.done()]
    before = done.last - len(done.words)
    made.history.append(Read("late", done.ended + 1, done.ended + 2, before))


def a_length_goes_back(made: Made) -> None:
    first = made.history[made.done()]
    made.history.append(Read("early", first.begun - 2, first.begun - 1, first.last))


def a_conflict_is_old(made: Made) -> None:
    done = made.history[made.done()]
    before = done.last - len(done.words)
    late = Append(
        "late", ("x",), done.ended + 1, done.ended + 2, Outcome.REFUSED, expected=len(made.log), current=before
    )
    made.history.append(late)


def a_read_saw_other_words(made: Made) -> None:
    at = made.pick(lambda each: is_read(each) and each.digest is not None)
    made.history[at] = replace(made.history[at], digest=made.history[at].digest ^ 1)


def a_read_saw_half_a_batch(made: Made) -> None:
    done = made.history[made.done(batch=2)]
    made.history.append(Read("half", 0, 1 << 40, done.last - 1))


def two_appends_change_places(made: Made) -> None:
    """In the log and in their answers alike: only the times tell."""
    done = [each for each in made.history if isinstance(each, Append) and each.outcome is Outcome.DONE]
    # Only appends, so that no read gives it away.
    made.history = [each for each in made.history if isinstance(each, Append)]
    pairs = [
        (a, b) for a, b in itertools.permutations(done, 2) if b.last - len(b.words) == a.last and a.ended < b.begun
    ]
    pairs = pairs or [(max(done, key=lambda each: each.last),) * 2]
    first, second = made.choose.choice(pairs)
    if first is second:  # none: make one
        made.history.append(replace(first, who="after", words=("late",), last=first.last, begun=first.ended + 1))
        return
    start = first.last - len(first.words)
    made.log[start : second.last] = [*made.log[first.last : second.last], *made.log[start : first.last]]
    made.history[made.history.index(first)] = replace(first, last=second.last, expected=None)
    made.history[made.history.index(second)] = replace(second, last=start + len(second.words), expected=None)


def a_delivery_is_lost(made: Made) -> None:
    at = made.pick(is_subscription)
    delivered = list(made.history[at].delivered)
    del delivered[made.choose.randrange(1, len(delivered))]
    made.history[at] = replace(made.history[at], delivered=tuple(delivered))


def a_delivery_comes_twice(made: Made) -> None:
    at = made.pick(is_subscription)
    delivered = list(made.history[at].delivered)
    again = made.choose.randrange(len(delivered))
    made.history[at] = replace(made.history[at], delivered=(*delivered[:again], delivered[again], *delivered[again:]))


def deliveries_change_places(made: Made) -> None:
    at = made.pick(is_subscription)
    delivered = list(made.history[at].delivered)
    here = made.choose.randrange(1, len(delivered))
    delivered[here - 1], delivered[here] = delivered[here], delivered[here - 1]
    made.history[at] = replace(made.history[at], delivered=tuple(delivered))


def a_delivery_has_another_word(made: Made) -> None:
    at = made.pick(is_subscription)
    delivered = list(made.history[at].delivered)
    when, seq, _word = delivered[2]
    delivered[2] = (when, seq, "other")
    made.history[at] = replace(made.history[at], delivered=tuple(delivered))


def a_delivery_comes_before_its_append(made: Made) -> None:
    at = made.pick(is_subscription)
    operation = made.history[made.done()]
    delivered = [
        (operation.begun - 1 if word == operation.words[0] else when, seq, word)
        for when, seq, word in made.history[at].delivered
    ]
    if delivered == list(made.history[at].delivered):  # it began behind that one
        delivered = [(-1, seq, word) for _when, seq, word in delivered]
    made.history[at] = replace(made.history[at], delivered=tuple(delivered))


def a_live_subscription_begins_late(made: Made) -> None:
    at = made.pick(lambda each: isinstance(each, Followed) and each.since is None)
    followed = made.history[at]
    skipped = next(
        here for here in range(1, len(followed.delivered)) if not made.log[followed.delivered[here][1] - 2].more
    )
    seen = followed.delivered[skipped][1]
    # Its first entries' append began only after it was there.
    made.history = [
        replace(each, begun=followed.entered + 1, ended=followed.entered + 2)
        if isinstance(each, Append) and each.words and each.words[-1] == made.log[seen - 2].word
        else each
        for each in made.history
    ]
    made.history[at] = replace(followed, delivered=followed.delivered[skipped:])


def a_subscription_stops_short(made: Made) -> None:
    at = made.pick(is_subscription)
    made.history[at] = replace(made.history[at], delivered=made.history[at].delivered[:-1])


WRONG = [
    an_acknowledged_entry_is_lost,
    the_log_lost_its_end,
    an_entry_is_there_twice,
    an_entry_nobody_appended,
    entries_of_a_batch_are_swapped,
    half_a_batch_is_there,
    a_batch_is_two,
    an_answer_is_off_by_one,
    a_refused_one_is_there,
    a_refused_one_was_right,
    an_expectation_did_not_hold,
    a_read_is_old,
    a_length_goes_back,
    a_conflict_is_old,
    a_read_saw_other_words,
    a_read_saw_half_a_batch,
    two_appends_change_places,
    a_delivery_is_lost,
    a_delivery_comes_twice,
    deliveries_change_places,
    a_delivery_has_another_word,
    a_delivery_comes_before_its_append,
    a_live_subscription_begins_late,
    a_subscription_stops_short,
]


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_every_wrong_history_is_found(spoil):
    for seed in range(25):
        made = Made(seed, steps=80)
        assert made.check() == []
        spoil(made)
        assert made.check(), f"seed {seed}"
