"""`scripts/bench`: what it prints is what was measured, and its page says what it does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bench_peers import workloads
from bench_peers.__main__ import options_of
from bench_peers.checkpoint import SPECIAL, TINY, make_tokenizer
from bench_peers.over_http import Endpoint
from bench_peers.table import BEGIN, END, put_into, table_of
from bench_peers.work import PeerError
from bench_peers.workloads import MEMORY, Row, Workload
from tests.conftest import REPOSITORY
from tests.fakes.odd_server import MODEL, OddServer

PAGE = (REPOSITORY / "docs/benchmarks.md").read_text("utf-8")


def test_a_ratio_is_how_many_times_ours_is_better_whichever_way_the_unit_goes() -> None:
    rows = [Row("rate", "tokens/s"), Row("wait", "s"), Row("absent", "s")]
    medians = {"appliance": {"rate": 120.0, "wait": 0.5}, "other": {"rate": 60.0, "wait": 1.0}}
    assert table_of(rows, ["appliance", "other"], medians).splitlines() == [
        "|  | appliance | other | us / other |",
        "| --- | --- | --- | --- |",
        "| rate, tokens/s | 120 | 60.0 | 2.00x |",
        "| wait, s | 0.500 | 1.00 | 2.00x |",
        "| absent, s | - | - | - |",
    ]


def test_only_what_is_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        put_into(page, "new\n")
        assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(AssertionError):
        put_into(page, "new")
    assert page.read_text() == "no markers"


def test_the_page_has_the_markers_once_each() -> None:
    assert PAGE.count(BEGIN) == PAGE.count(END) == 1
    assert PAGE.index(BEGIN) < PAGE.index(END)


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"`?(\./scripts/bench(?![\w-])[^`\n]*)", PAGE)))
)
def test_every_command_on_the_page_is_one_that_the_script_takes(line: str) -> None:
    options_of(shlex.split(line)[1:])


def test_every_workload_is_on_the_page() -> None:
    for number in (w.tokens_in for w in workloads.FULL):
        assert f"{number:,}" in PAGE
    for item in workloads.FULL:
        if item.kind == "batch":
            assert item.name in PAGE


def test_every_id_of_the_tokenizer_is_text_and_comes_back() -> None:
    tokenizer = make_tokenizer(TINY.tokens)
    # Of the single bytes only some are text by themselves; behind them every id is letters.
    for index in range(256, TINY.tokens):
        text = tokenizer.decode([index])
        assert text.strip()
        assert text.isascii()
    assert tokenizer.encode("the quick brown fox").tokens
    assert tokenizer.decode(tokenizer.encode("the quick brown fox").ids) == "the quick brown fox"
    assert [tokenizer.token_to_id(t) for t in SPECIAL] == list(range(4000, 4003))


@pytest.mark.parametrize(
    "work",
    [
        Workload("b", "batch", 64, 8, streams=4),
        Workload("p", "prefill", 64),
        Workload("d", "decode", 64, 8),
        Workload("w", "warm", 64, part=32, repeats=1),
        Workload("s", "beside", 64, part=20, repeats=1),
    ],
    ids=lambda work: work.kind,
)
def test_a_workload_fills_its_rows_through_any_endpoint(work: Workload) -> None:
    with OddServer() as server:
        # Slow enough that the long request is still on its way when the short one comes.
        server.habits.tokenize = True
        server.habits.seconds_per_piece = 1.0 if work.kind == "beside" else 0.0
        figures = Endpoint(server.base_url, MODEL).measure(work)
    assert list(figures) == [row.name for row in work.rows]
    assert all(value > 0 for value in figures.values())
    assert MEMORY.name not in figures


def test_a_request_that_fails_is_no_figure() -> None:
    with OddServer() as server:
        server.habits.usage = False
        with pytest.raises(PeerError, match="how many tokens"):
            Endpoint(server.base_url, MODEL).measure(Workload("p", "prefill", 64))
