"""The workloads by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.bench.bench import Bench
from tests.bench.comparison import Comparison
from tests.bench.measure import Measure
from tests.bench.workloads.appending import append
from tests.bench.workloads.authority import forwarded, handover, held
from tests.bench.workloads.checking import checking
from tests.bench.workloads.cold import cold_listing, cold_reads, round_trips
from tests.bench.workloads.durable import durable_appends
from tests.bench.workloads.folding import folding
from tests.bench.workloads.following import follow
from tests.bench.workloads.forgetting import forgetting
from tests.bench.workloads.git import in_git
from tests.bench.workloads.indexing import indexing, opening
from tests.bench.workloads.listing import listing, memory
from tests.bench.workloads.strict import strict
from tests.bench.workloads.warm import warm_pread, warm_read, warm_stat
from tests.bench.workloads.writing import appends, attachments

Workload = Callable[[Bench], list[Comparison] | list[Measure]]

PEERS: Final[dict[str, Workload]] = {
    "warm-read": warm_read,
    "warm-stat": warm_stat,
    "warm-pread": warm_pread,
    "round-trips": round_trips,
    "cold-reads": cold_reads,
    "cold-listing": cold_listing,
    "follow": follow,
    "appends": appends,
    "attachments": attachments,
    "forgetting": forgetting,
}
"""Beside other file systems. Reading comes first, while there is little to be warmed below."""

WORKLOADS: Final[dict[str, Workload]] = PEERS | {
    "append": append,
    "durable": durable_appends,
    "strict": strict,
    "held": held,
    "forwarded": forwarded,
    "handover": handover,
    "listing": listing,
    "memory": memory,
    "folding": folding,
    "indexing": indexing,
    "opening": opening,
    "fsck": checking,
    "git": in_git,
}
