"""The workloads by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.bench.bench import Bench
from tests.bench.measure import Measure
from tests.bench.workloads.appending import append
from tests.bench.workloads.checking import checking
from tests.bench.workloads.durable import durable_appends
from tests.bench.workloads.folding import folding
from tests.bench.workloads.following import follow
from tests.bench.workloads.indexing import indexing
from tests.bench.workloads.listing import listing, memory, opening
from tests.bench.workloads.rates import appends, attachments, large_attachment
from tests.bench.workloads.reading import warm_read, warm_stat

Workload = Callable[[Bench], list[Measure]]

WORKLOADS: Final[dict[str, Workload]] = {
    "warm-read": warm_read,
    "warm-stat": warm_stat,
    "append": append,
    "durable": durable_appends,
    "listing": listing,
    "opening": opening,
    "memory": memory,
    "follow": follow,
    "folding": folding,
    "indexing": indexing,
    "fsck": checking,
    "appends": appends,
    "attachments": attachments,
    "large-attachment": large_attachment,
}
