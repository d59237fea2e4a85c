"""What the bench makes of its samples: medians, ratios, goals, tables, the plot."""

import re
import xml.etree.ElementTree as ET

import pytest

from tests.bench import plot, report
from tests.bench.comparison import Comparison, take_turns_apart
from tests.bench.goals import GOALS, Beside
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, percentile, take_turns
from tests.bench.target import ROOT, Kind

KINDS = {
    "native": Kind.NATIVE,
    "chatfs": Kind.CHATFS,
    "bindfs": Kind.C,
    "mergerfs": Kind.C,
    "passthrough_ll": Kind.C,
    "pyfuse3-example": Kind.EXAMPLE,
    "rclone": Kind.OTHER,
}


def compared(key, unit, **samples):
    series = {name.replace("_", "-") if name.startswith("py") else name: taken for name, taken in samples.items()}
    return Comparison(
        key,
        "some",
        unit,
        {name: Series(name, tuple(taken)) for name, taken in series.items()},
        {n: KINDS[n] for n in series},
    )


def test_percentiles_are_samples():
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(samples, p) for p in (1, 20, 50, 99, 100)] == [1.0, 1.0, 3.0, 5.0, 5.0]


def test_a_ratio_is_taken_turn_by_turn():
    # Both were slowed down at the same time, which their ratio doesn't show.
    measure = Measure(
        "m", Unit.RATE, Series("chatfs", (10, 2, 30)), Series("native", (20, 4, 60)), Goal(0.5, True, True)
    )
    assert measure.ratio is not None
    assert measure.ratio.samples == (0.5, 0.5, 0.5)
    assert measure.reached


def test_the_c_pass_through_is_the_faster_one_at_that():
    rates = compared("append to an open log", Unit.RATE, chatfs=[100], bindfs=[50], mergerfs=[200])
    times = compared("cold lookup", Unit.SECONDS, chatfs=[100], bindfs=[50], mergerfs=[200])
    assert rates.ratio(Kind.C) == Series("mergerfs", (0.5,))
    assert times.ratio(Kind.C) == Series("bindfs", (2.0,))


def test_libfuses_own_pass_through_goes_before_a_faster_one():
    found = compared("append to an open log", Unit.RATE, chatfs=[100], bindfs=[500], passthrough_ll=[200])
    assert found.ratio(Kind.C) == Series("passthrough_ll", (0.5,))


def test_neither_rclone_nor_the_example_is_a_c_pass_through():
    found = compared("append to an open log", Unit.RATE, chatfs=[100], rclone=[500], pyfuse3_example=[20])
    assert found.ratio(Kind.C) is None
    assert found.ratio(Kind.EXAMPLE) == Series("pyfuse3-example", (5.0,))


@pytest.mark.parametrize(
    ("key", "unit", "samples", "reached"),
    [
        ("append to an open log", Unit.RATE, {"chatfs": [99], "bindfs": [100], "pyfuse3_example": [33]}, [False, True]),
        (
            "append to an open log",
            Unit.RATE,
            {"chatfs": [100], "bindfs": [100], "pyfuse3_example": [34]},
            [True, False],
        ),
        ("cold lookup", Unit.SECONDS, {"chatfs": [1.5], "bindfs": [1.0]}, [True]),
        ("cold lookup", Unit.SECONDS, {"chatfs": [1.6], "bindfs": [1.0]}, [False]),
        ("warm stat: requests", Unit.COUNT, {"chatfs": [0, 0, 3]}, [True]),
        ("warm stat: requests", Unit.COUNT, {"chatfs": [0, 2, 3], "bindfs": [5]}, [False]),
        ("commit to visible: median", Unit.SECONDS, {"chatfs": [0.004], "native": [0.001]}, [True]),
        ("commit to visible: 99th percentile", Unit.SECONDS, {"chatfs": [0.06]}, [False]),
        ("memory after listing", Unit.COUNT, {"chatfs": [1.31, 1.32]}, [False]),
        ("warm read, 50 MB history.md", Unit.THROUGHPUT, {"chatfs": [9e8], "native": [1e9]}, [True]),
    ],
)
def test_goals(key, unit, samples, reached):
    assert [verdict.reached for verdict in compared(key, unit, **samples).verdicts()] == reached


def test_a_goal_isnt_judged_without_what_it_is_beside():
    assert compared("open + append + close", Unit.RATE, chatfs=[100], native=[1000]).verdicts() == []
    assert len(compared("open + append + close", Unit.RATE, chatfs=[100], pyfuse3_example=[10]).verdicts()) == 1
    assert compared("open + append + close", Unit.RATE, native=[100], bindfs=[10]).verdicts() == []


def test_every_goal_is_about_something_and_in_reach_of_a_ratio():
    for aims in GOALS.values():
        assert aims
        for aim in aims:
            assert aim.limit > 0 or aim.beside is Beside.NOTHING


def test_turns_alternate_and_the_first_isnt_counted():
    order = []
    series = take_turns(2, {"a": lambda: order.append("a") or len(order), "b": lambda: order.append("b") or len(order)})
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert series["a"].samples == (3, 6)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_slow_one_takes_fewer_turns_and_a_failing_one_none():
    clock = Clock()
    turns = {"slow": 0, "quick": 0, "failing": 0}

    def taking(name, seconds):
        def sample():
            clock.now += seconds
            turns[name] += 1
            if name == "failing" and turns[name] == 2:
                raise BenchError("it broke")
            return float(turns[name])

        return sample

    subjects = {name: taking(name, seconds) for name, seconds in (("slow", 6), ("quick", 1), ("failing", 1))}
    series, failures = take_turns_apart(4, subjects, warm_up=True, budget=10, clock=clock)
    assert series == {"slow": Series("slow", (2.0,)), "quick": Series("quick", (2.0, 3.0, 4.0, 5.0))}
    assert failures == {"failing": "BenchError: it broke"}
    assert turns == {"slow": 2, "quick": 5, "failing": 2}


def test_the_only_sample_of_a_very_slow_one_counts():
    clock = Clock()

    def sample():
        clock.now += 20
        return 7.0

    assert take_turns_apart(5, {"slow": sample}, warm_up=True, budget=10, clock=clock)[0]["slow"].samples == (7.0,)


def test_a_programming_error_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        take_turns_apart(1, {"a": lambda: 1 / 0}, warm_up=False)


SOME = (
    compared("cold lookup", Unit.SECONDS, native=[1e-6], chatfs=[2e-5, 4e-5, 3e-5], bindfs=[1e-5, 2e-5, 5e-5]),
    compared("small attachments", Unit.RATE, native=[20_000], chatfs=[2000], mergerfs=[1000], pyfuse3_example=[500]),
    compared("warm stat: requests", Unit.COUNT, chatfs=[0], bindfs=[0]),
)


def test_tables_show_medians_ranges_ratios_and_goals():
    everything = report.targets_table(SOME)
    assert "30 µs (20–40)" in everything  # noqa: RUF001
    ratios = [re.sub(" +", " ", line) for line in report.ratios_table(SOME, small=False).split("\n")]
    assert ratios[2] == (
        "| cold lookup (some) | 30 µs (20–40) | 20× | 2× bindfs | | ≤ 1.5× C pass-through | NOT REACHED |"  # noqa: RUF001
    )
    assert "| 2× mergerfs | 4× | ≥ 1× C pass-through | reached |" in ratios[3]  # noqa: RUF001
    assert "(reached)" in report.ratios_table(SOME, small=True)


def test_the_plot_shows_speeds_beside_the_native_one():
    assert plot.relative_speeds(SOME[0]) == {"chatfs": pytest.approx(1 / 30), "bindfs": pytest.approx(1 / 20)}
    assert plot.relative_speeds(SOME[1])["chatfs"] == pytest.approx(0.1)
    assert plot.relative_speeds(SOME[2]) == {}
    root = ET.fromstring(plot.svg(SOME))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"cold lookup", "small attachments", "chatfs", "bindfs", "native"} <= set(texts)
    assert "warm stat: requests" not in texts
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles.count("chatfs") == 3  # its mark in the legend, and one in each line


def test_a_plot_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        plot.svg(SOME[2:])


def test_the_readme_is_rewritten_between_its_marks_only():
    marked = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.put_into(marked, r"new \1")
    assert once == f"before\n{report.BEGIN}\nnew \\1\n{report.END}\nafter\n"
    assert report.put_into(once, r"new \1") == once
    with pytest.raises(ValueError, match="must be one"):
        report.put_into("no marks", "new")


def test_the_projects_readme_has_the_marks():
    readme = (ROOT / "README.md").read_text()
    assert report.put_into(readme, "new") != readme
