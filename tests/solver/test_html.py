"""The report is one page that loads nothing, says everything and lets nothing in a profile become markup."""

from __future__ import annotations

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from profiler.profile import BadInput, Profile
from solver.problem import SolveOptions
from solver.scenario import Solution, solve
from solver.show.html import MOST_DRAWN, command, fragment, page, write_html
from solver.show.markup import Safe, cell, tag
from tests.solver.test_scenario import fleet, letterlike, limited

pytest.importorskip("matplotlib")

VOID = {"meta", "br", "img", "path", "use", "rect", "image", "line", "circle"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&</style></title>"


class Reader(HTMLParser):
    """Elements, attributes and text of a page; fails where elements are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def many(count: int) -> list[Profile]:
    server, fast, _ = fleet()
    return [server, *(fast.model_copy(update={"name": f"board-{k}"}) for k in range(count))]


def hostile() -> list[Profile]:
    return [
        p.model_copy(
            update={
                "workload": p.workload.model_copy(update={"model": HOSTILE}),
                "hardware": p.hardware.model_copy(update={"description": HOSTILE}),
                "warnings": [HOSTILE],
                "created_utc": HOSTILE,
            }
        )
        for p in fleet()
    ]


@pytest.fixture(scope="module")
def read() -> Reader:
    return Reader(page(solve(fleet(), SolveOptions())))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (fleet, SolveOptions(method="card")),
        (letterlike, SolveOptions(rounds=3)),
        (lambda: fleet(power_fit=None), SolveOptions(w=1.0)),
        (fleet, SolveOptions(price_j_per_s=3.0)),
        (fleet, SolveOptions(method="static:2", rounds=60)),
    ],
)
def test_every_kind_of_decision_makes_a_well_formed_page(make: Any, options: SolveOptions) -> None:
    solution = solve(make(), options)
    reader = Reader(page(solution))
    for device in solution.problem.devices:
        assert device.name in reader.text
    assert "nan" not in reader.text.lower().split()


def test_the_page_loads_nothing_and_forbids_itself_to(read: Reader) -> None:
    text = page(solve(fleet(), SolveOptions()))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    for _, name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)


def test_the_page_can_be_read_by_ear(read: Reader) -> None:
    assert read.tags.count("h1") == 1
    assert ("html", "lang", "en") in read.attributes
    assert read.tags.count("caption") == read.tags.count("table")
    drawn = [value for tag_, name, value in read.attributes if (tag_, name) == ("svg", "aria-label")]
    assert len(drawn) == read.tags.count("svg") == 6
    assert all(value for value in drawn)
    assert {value for tag_, name, value in read.attributes if (tag_, name) == ("th", "scope")} == {"col", "row"}


def test_no_two_elements_share_an_id_and_every_reference_leads_somewhere(read: Reader) -> None:
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for _, name, v in read.attributes if name in ("href", "xlink:href") and v.startswith("#")}
    wanted |= {v for _, name, v in read.attributes if name == "aria-labelledby"}
    wanted |= {v for _, _, value in read.attributes for v in re.findall(r"url\(#([^)]*)\)", value)}
    assert wanted <= set(ids)


def test_the_page_says_what_was_decided_why_what_else_there_is_and_what_it_rests_on() -> None:
    server, fast, slow = fleet()
    solution = solve([server, limited(fast, 250_000_000), slow], SolveOptions())
    text = Reader(page(solution, profiles="my folder")).text
    for row in solution.as_json()["decisions"]:
        assert row["why"]["text"] in text
    for wanted in ("next best cut", "server-only", "device-only", "without memory limits", "does not fit"):
        assert wanted in text
    for item in solution.assumptions:
        assert item.quantity in text
        assert item.provenance in text
    for line in solution.warnings:
        assert line in text
    assert "Eq. 12" in text
    assert "card-solve --profiles 'my folder' --method exact --w 0.2" in text


def test_nothing_in_a_profile_becomes_markup() -> None:
    solution = solve(hostile(), SolveOptions())
    for text in (page(solution, profiles=HOSTILE), fragment(solution)):
        reader = Reader(text)
        assert not {"script", "img"} & set(reader.tags)
        assert HOSTILE in reader.text
        assert not [name for _, name, _ in reader.attributes if name.startswith("on")]


def test_text_is_escaped_unless_it_is_our_own_markup() -> None:
    assert cell("a<b>&\x1b") == "a&lt;b&gt;&amp;?"
    assert cell(Safe("<b>")) == "<b>"
    assert tag("p", "<", Safe("<i></i>"), class_='a"b') == '<p class="a&quot;b">&lt;<i></i></p>'


def test_a_large_fleet_gets_figures_for_the_first_devices_and_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solver.show.html.MOST_DRAWN", 2)
    text = page(solve(many(230), SolveOptions()))
    assert text.count("<svg ") == 6
    size = len(page(solve(many(2), SolveOptions())))
    assert (len(text) - size) / 228 < 2_000  # what a device without figures adds
    assert size / 2 * MOST_DRAWN < 3_000_000
    assert "Figures for the first 2 of 230 devices" in text
    assert "30 more devices: card-solve --csv FILE has them all." in text


def test_the_command_decides_the_same_again() -> None:
    options = SolveOptions(
        method="card", w=0.6, rounds=3, channel="poor", seed=4, f_min_ghz=0.7, leave_out=("head", "optimizer")
    )
    words = shlex.split(command(solve(fleet(), options), "here"))
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given == {
        "--profiles": "here", "--method": "card", "--w": "0.6", "--rounds": "3", "--channel": "poor", "--seed": "4",
        "--f-min-ghz": "0.7", "--leave-out": "head,optimizer",
    }  # fmt: skip
    price = shlex.split(command(solve(fleet(), SolveOptions(price_j_per_s=2.0, count_idle=True)), "here"))
    assert price == ["card-solve", "--profiles", "here", "--method", "exact", "--price", "2.0", "--count-idle"]


def test_every_option_that_the_command_may_name_exists() -> None:
    import dataclasses

    import typer

    from solver.commands import solve_app

    member = typer.main.get_command(solve_app).commands["decide"]  # type: ignore[attr-defined]
    known = {flag for p in member.params for flag in p.opts}
    changed = {
        "server": "srv", "evaluate": "letter", "compression": 0.5, "uplink_mbps": 3.0, "downlink_mbps": 4.0, "f_max_ghz": 1.5,
    }  # fmt: skip
    plain = solve(fleet(), SolveOptions(**changed))
    for field in dataclasses.fields(SolveOptions):
        # Whatever its value, the name of the option is that of the field.
        value = changed.get(field.name, "x" if field.name not in ("leave_out",) else ("head",))
        options = dataclasses.replace(plain.problem.options, **{field.name: value})
        if isinstance(value, str) and field.name in ("w", "price_j_per_s", "max_delay_s", "max_energy_j"):
            options = dataclasses.replace(plain.problem.options, **{field.name: 0.5})
        words = shlex.split(command(_with(plain, options), "here"))
        assert {w for w in words if w.startswith("--")} <= known, field.name


def _with(solution: Solution, options: SolveOptions) -> Solution:
    import dataclasses

    return dataclasses.replace(solution, problem=dataclasses.replace(solution.problem, options=options))


def test_the_file_is_written_whole_or_refused_in_one_line(tmp_path: Path) -> None:
    solution = solve(fleet(), SolveOptions())
    path = write_html(solution, tmp_path / "new" / "report.html")
    assert path.read_text().startswith("<!doctype html>")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(BadInput, match=r"report.html: cannot be written"):
        write_html(solution, blocked / "report.html")


def test_a_notebook_shows_the_table_the_reasons_and_the_warnings() -> None:
    server, fast, slow = fleet()
    solution = solve([server, limited(fast, 150_000_000), slow], SolveOptions())
    reader = Reader(solution._repr_html_())
    assert reader.tags.count("table") == 1
    assert "Cut 1 on fast. " in reader.text
    assert "device-only does not fit in memory for fast" in reader.text
