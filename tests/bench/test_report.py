"""What is shown of a run: transcript, page, document, comparison."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import NotFoundError, UsageError
from installer.bench import picture
from installer.bench.comparison import compare
from installer.bench.figures import Histogram
from installer.bench.page import page_of
from installer.bench.report import read_report, this_machine, to_json
from installer.cli.bench import _print_report
from tests.bench.example import example_report
from tests.conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests/golden/0.1/bench"


def test_the_printed_report_is_the_transcript(capsys: pytest.CaptureFixture[str]) -> None:
    _print_report(example_report(), compare(example_report(), example_report(speed=0.5)))
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert printed + "\n" == (GOLDEN / "transcript.txt").read_text("utf-8")


def test_a_report_of_this_release_is_written_as_the_golden_file_and_read_back() -> None:
    assert to_json(example_report()).decode() == (GOLDEN / "report.json").read_text()
    assert read_report(GOLDEN / "report.json") == example_report()


def test_what_is_not_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_report(tmp_path / "absent")
    path = tmp_path / "x.json"
    for text in (b"{}", b"nonsense", to_json(example_report()).replace(b"bench-1", b"bench-2")):
        path.write_bytes(text)
        with pytest.raises(UsageError, match="not a report"):
            read_report(path)


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    page = page_of(example_report())
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for element in tree.iter():
        assert not {"src", "href", "srcset", "action"} & element.attrib.keys()
        assert not any(name.startswith("on") for name in element.attrib)
    assert "@import" not in page
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\s\"<]+", page)) == {
        "http://www.w3.org/2000/svg",
        "http://127.0.0.1:8400/v1",
    }


def test_the_page_shows_every_figure_of_the_table_and_all_facts() -> None:
    report = example_report()
    tree = ElementTree.fromstring(page_of(report).removeprefix("<!DOCTYPE html>\n"))
    text = " ".join("".join(tree.itertext()).split())
    for fact in (report.command, "ab" * 32, "Example <Processor> & Co", "the stream broke off"):
        assert fact in text
    charts = [element for element in tree.iter() if element.tag.endswith("}svg")]
    assert len(charts) == 5
    for chart in charts:
        assert chart.find("{http://www.w3.org/2000/svg}title") is not None


def test_the_page_of_a_run_without_any_answer_is_well_formed_too() -> None:
    report = msgspec.structs.replace(example_report(), levels=(), interrupted=True)
    page = page_of(report)
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert "interrupted" in page


def test_marks_of_every_chart_stay_inside_it() -> None:
    tree = ElementTree.fromstring(page_of(example_report()).removeprefix("<!DOCTYPE html>\n"))
    for svg in (element for element in tree.iter() if element.tag.endswith("}svg")):
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for mark in svg.iter():
            for name, limit in (("x", width), ("y", height), ("y1", height), ("cy", height)):
                assert 0 <= float(mark.get(name, 0)) <= limit


def test_twice_the_speed_compares_as_two_and_a_half() -> None:
    found = compare(example_report(speed=2.0), example_report())
    assert found.differences == ()
    for ratios in found.levels:
        assert ratios.output_tokens_per_second == pytest.approx(2)
        assert ratios.requests_per_second == pytest.approx(2)
        assert ratios.ttft_p50 == pytest.approx(0.5)
        assert ratios.gap_p50 == pytest.approx(0.5)
        assert ratios.total_p50 == pytest.approx(0.5)


def test_what_else_differs_is_named() -> None:
    report = example_report()
    workload = msgspec.structs.replace(report.workload, input_tokens=99)
    target = msgspec.structs.replace(report.target, bundle_digest="cd")
    other = msgspec.structs.replace(report, workload=workload, target=target)
    assert compare(report, other).differences == ("bundle", "prompt")


def test_levels_of_one_report_only_are_left_out() -> None:
    report = example_report()
    assert (
        len(compare(report, msgspec.structs.replace(report, levels=report.levels[1:])).levels) == 1
    )


@settings(deadline=None)
@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e9), min_size=1, max_size=9), st.integers(1, 60))
def test_bars_are_to_scale_and_never_longer_than_their_width(
    values: list[float], width: int
) -> None:
    lines = picture.bars([("x", value, "") for value in values], width=width)
    lengths = [len(line.removeprefix("x ").rstrip()) for line in lines]
    assert max(lengths) <= width
    for (one, first), (other, second) in zip(
        zip(values, lengths, strict=True), zip(values[1:], lengths[1:], strict=True), strict=False
    ):
        assert one < other or first >= second
        assert (second > 0) == (other > 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=24).filter(any))
def test_every_value_leaves_a_mark_in_the_picture(counts: list[int]) -> None:
    lines = picture.histogram(Histogram(0.0, 0.1, tuple(counts)))
    bottom = lines[-2].ljust(len(counts))
    assert [mark != " " for mark in bottom] == [count > 0 for count in counts]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00 ms"), (0.00412, "4.12 ms"), (0.0999, "99.9 ms"), (0.132, "132 ms"),
     (0.99996, "1,000 ms"), (1.0, "1.00 s"), (12.34, "12.3 s"), (3600.0, "3,600 s")],
)  # fmt: skip
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert picture.duration(seconds) == text


def test_the_machine_is_described() -> None:
    machine = this_machine()
    assert machine.processors >= 1
    assert machine.memory_bytes > 1 << 20
    assert this_machine(Path("/absent")).processor
