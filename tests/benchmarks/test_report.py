"""The page stands alone, says what was measured, and leaves out nothing that was not."""

import re
import xml.dom.minidom
from pathlib import Path

import pytest

from benchmarks import cli, flame, results
from benchmarks.errors import UserError
from benchmarks.figures import Figures
from benchmarks.report import markdown, page, words
from benchmarks.results import Results, Skipped
from benchmarks.statistics import Interval
from tests.benchmarks.documents import document, row

ONE, TEN = row("lookup-cold", 1), row("lookup-cold", 10)


@pytest.fixture(scope="module")
def result() -> Results:
    """Two rows of two subjects, one of them not measured on the second."""
    made = document(
        (ONE, "plain", [1.0, 2.0, 1.5, 1.0, 1.0, 1.0]),
        (ONE, "<kernel>", [4.0, 8.0, 6.0, 4.0, 4.0, 4.0]),
        (TEN, "plain", [2.0] * 6),
    )
    made.skipped = [Skipped("row <x> of y", "EXDEV & more")]
    return made


def test_ratios_are_within_a_round(result: Results) -> None:
    figure = Figures(result).of(ONE, "<kernel>")
    assert figure is not None
    assert figure.ratio == Interval(4, 4, 4, 0.96875)
    assert Figures(result, "<kernel>").of(ONE, "<kernel>").ratio is None  # type: ignore[union-attr]


def test_a_round_that_only_one_finished_has_no_ratio() -> None:
    figures = Figures(document((ONE, "plain", [1.0, 1.0]), (ONE, "kernel", [2.0, 2.0, 90.0])))
    figure = figures.of(ONE, "kernel")
    assert figure is not None
    assert figure.ratio is not None
    assert figure.ratio.high == 2
    assert figure.rounds == 3


def test_the_page_stands_alone(result: Results) -> None:
    text = page.render(result, None)
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"|<!DOCTYPE[^>]*>|<\?xml[^>]*>', "", text)
    assert not re.search(r"<script|<link|<img|@import|src=|url\((?!#)", outside)
    assert not re.search(r'href="(?!#)', outside)
    assert "EXDEV &amp; more" in text
    assert "&lt;kernel&gt;" in text
    assert "<kernel>" not in text
    assert "4.00\N{MULTIPLICATION SIGN}" in text
    assert ONE.id in text


def test_its_plots_are_sound_and_do_not_share_names(result: Results) -> None:
    text = page.render(result, None)
    plots = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(plots) == 2
    names: list[str] = []
    for plot in plots:
        xml.dom.minidom.parseString(plot)
        names += re.findall(r'\bid="([^"]+)"', plot)
        for used in re.findall(r'(?:url\(|href=")#([^")]+)', plot):
            assert f'id="{used}"' in plot
    assert len(names) == len(set(names))


def test_what_is_incomplete_is_called_so(result: Results) -> None:
    assert "Not complete" not in page.render(result, None)
    cut = document((ONE, "plain", [1.0]))
    cut.complete, cut.ended_by = False, "interrupted"
    assert "Not complete: the run was interrupted." in page.render(cut, None)


def test_markdown_has_the_ratios_and_the_command(result: Results) -> None:
    text = markdown.render(result, None)
    assert "    python -m benchmarks run\n" in text
    assert "4.00 (4.00 to 4.00)" in text


def test_nothing_measured_is_said(result: Results) -> None:
    empty = document((ONE, "plain", [1.0]))
    empty.samples = []
    with pytest.raises(UserError, match="no samples"):
        page.render(empty, None)
    with pytest.raises(UserError, match="--baseline other: no such subject; there are plain"):
        page.render(result, "other")


def test_the_command_writes_what_its_name_says(tmp_path: Path, result: Results) -> None:
    results.save(result, tmp_path / "r.json")
    for name, start in (("page.html", "<!DOCTYPE html>"), ("page.md", "Cost as")):
        assert cli.main(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(start)


def test_numbers_have_three_digits() -> None:
    assert [words.number(v) for v in (0, 0.1234, 1.234, 12.34, 123.4)] == [
        *("0", "0.123", "1.23", "12.3", "123"),
    ]
    assert words.size(4096) == "4 KiB"
    assert words.size(1 << 30) == "1 GiB"
    assert [words.duration(s) for s in (40, 700, 3900)] == ["40 s", "12 min", "1 h 5 min"]


def test_a_flame_graph_has_every_wide_frame() -> None:
    stacks: dict[tuple[str, ...], int] = {
        ("main (a.py:1)", "work (a.py:2)"): 60,
        ("main (a.py:1)", "<write> (libc)"): 39,
    }
    stacks[("seldom",)] = 1
    text = flame.draw(stacks, "row & subject")
    xml.dom.minidom.parseString(text)
    assert "row &amp; subject, 100 samples" in text
    assert "main (a.py:1): 99.0 %, itself 0.0 %" in text
    assert "&lt;write&gt; (libc): 39.0 %, itself 39.0 %" in text
