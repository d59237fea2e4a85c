"""Each target over its seeds, over mutations of them, and over any bytes. `scripts/fuzz` is the long form."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

LONG = "CHATFS_EXAMPLES" in os.environ
EXAMPLES = settings(
    max_examples=int(os.environ.get("CHATFS_EXAMPLES", "120")),
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
TOKENS = st.sampled_from(
    [
        b"",
        b"\0",
        b"\n",
        b"\r\n",
        b"\xff",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[]",
        b"null",
        b"-1",
        b"1e999",
        b"99999999999999999999",
        b"\\ud800",
        b'"type":',
        b'"id":',
        b'"content":',
        b'"append":',
        b"## user\n",
        b"\\## user\n",
        b"```\n",
        b"~~~~\n",
        b"\x1e",
        "·".encode(),
        "\u2028".encode(),
    ]
)


@st.composite
def mutated(draw: st.DrawFn, target: Target) -> bytes:
    """A seed with a few pieces taken out, doubled, moved, or put in."""
    seeds = target.seeds()
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 8, 64, 1024])))
        piece = bytes(data[start:end])
        match draw(st.integers(0, 4)):
            case 0:
                data[start:end] = draw(TOKENS)
            case 1:
                data[start:end] = draw(st.binary(max_size=8))
            case 2:
                data[start:start] = piece * draw(st.sampled_from([1, 2, 50]))
            case 3:
                del data[start:end]
                at = draw(st.integers(0, len(data)))
                data[at:at] = piece
            case _:
                other = draw(st.sampled_from(seeds))
                at = draw(st.integers(0, len(other)))
                data[start:end] = other[at : at + 200]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str):
    for seed in TARGETS[name].seeds():
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str):
    target = TARGETS[name]

    @EXAMPLES
    @given(mutated(target))
    def check(data: bytes) -> None:
        target.check(data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str):
    target = TARGETS[name]

    @EXAMPLES
    @given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
    def check(data: bytes) -> None:
        target.check(data)

    check()
