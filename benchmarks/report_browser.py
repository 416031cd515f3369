"""The HTML report in a real browser: nothing is fetched, nothing complained of, nothing runs over the edge, every figure is drawn.

    python -m benchmarks.report_browser [--profiles DIR] [--output DIR]

Needs Chromium and the package playwright (pip install playwright). The browser is ``CARD_CHROMIUM``, else the first on PATH of chromium,
chromium-browser and google-chrome, else playwright's own. Screenshots and a PDF go to --output. Exit 1 where a check fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from profiler.store import load_fleet
from solver.problem import SolveOptions
from solver.scenario import solve
from solver.show.html import write_html

WIDTHS_PX = (375, 768, 1280)
SCHEMES = ("light", "dark")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

LOOK = """() => {
  const box = element => element.getBoundingClientRect();
  const wide = element => element.closest('.wide') !== null;
  const over = [...document.querySelectorAll('body *')].filter(e => !wide(e) && !e.closest('svg') && box(e).right > innerWidth + 1);
  const inside = [...document.querySelectorAll('.wide')].filter(e => box(e).right > innerWidth + 1);
  const flat = [...document.querySelectorAll('svg')].filter(e => box(e).width < 200 || box(e).height < 120);
  const empty = [...document.querySelectorAll('svg')].filter(e => e.querySelectorAll('path, image').length < 10);
  const broken = [...document.querySelectorAll('img')].filter(e => !e.naturalWidth);
  return {page: document.documentElement.scrollWidth - innerWidth, over: over.length, inside: inside.length, figures:
    document.querySelectorAll('svg').length, flat: flat.length, empty: empty.length, broken: broken.length,
    unnamed: document.querySelectorAll('svg:not([aria-label]), table:not(:has(caption))').length, title: document.title};
}"""
"""What a person would see at a glance, as numbers that must be 0 but for the count of figures."""

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; }
    return [255, 255, 255, 255]; };
  let least = 21;
  for (const e of document.querySelectorAll('p, td, th, dt, dd, li, figcaption, caption, h1, h2, h3, code, small, a')) {
    const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e));
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""
"""The least contrast of any text against its ground; WCAG AA asks for 4.5."""


def browser_path() -> str | None:
    """The browser to drive; None for playwright's own."""
    found = [os.environ.get("CARD_CHROMIUM")]
    found += [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next((path for path in found if path), None)


def look(page_file: Path, folder: Path | None = None) -> list[dict[str, Any]]:
    """Open a report at every width and in both schemes. One record for each: what was asked for, said and seen."""
    from playwright.sync_api import sync_playwright

    records = []
    with sync_playwright() as driver:
        # A container has no user namespaces for the browser's sandbox; the page is our own file and loads nothing.
        browser = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        try:
            for scheme in SCHEMES:
                for width in WIDTHS_PX:
                    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                    said: list[str] = []
                    asked: list[str] = []
                    page.on("console", lambda message, to=said: to.append(message.text))
                    page.on("pageerror", lambda error, to=said: to.append(str(error)))
                    page.on("request", lambda request, to=asked: to.append(request.url))
                    start = time.perf_counter()
                    page.goto(page_file.resolve().as_uri())
                    record = {"scheme": scheme, "width_px": width, "load_s": time.perf_counter() - start}
                    record |= page.evaluate(LOOK)
                    record["contrast"] = page.evaluate(CONTRAST)
                    record["said"] = said
                    record["asked"] = [url for url in asked if not url.startswith("data:")][1:]
                    records.append(record)
                    if folder is not None:
                        folder.mkdir(parents=True, exist_ok=True)
                        page.screenshot(path=folder / f"{page_file.stem}-{scheme}-{width}.png", full_page=True)
                        if (scheme, width) == ("light", WIDTHS_PX[-1]):
                            page.pdf(path=folder / f"{page_file.stem}.pdf", print_background=True)
                    page.close()
        finally:
            browser.close()
    return records


def faults(record: dict[str, Any]) -> list[str]:
    """What is wrong with one look at a page, in words."""
    wrong = [f"{name}: {record[name]}" for name in ("said", "asked") if record[name]]
    wrong += [
        f"{name}: {record[name]}" for name in ("over", "inside", "flat", "empty", "broken", "unnamed") if record[name]
    ]
    if record["page"] > 0:
        wrong.append(f"the page is {record['page']} px wider than the window")
    if record["figures"] == 0:
        wrong.append("no figure")
    if record["contrast"] < 4.5:
        wrong.append(f"contrast {record['contrast']:.2f}")
    if record["title"] == "owned":
        wrong.append("a profile's text ran as a script")
    return wrong


def reports(profiles: Path, folder: Path) -> list[Path]:
    """The fleet as it is; over many rounds; and with texts and a name that try to be markup or to run over the edge."""
    fleet = load_fleet(profiles)
    hostile = [
        p.model_copy(
            update={
                "name": p.name + "-with-a-very-long-name" * 3,
                "workload": p.workload.model_copy(update={"model": HOSTILE}),
                "hardware": p.hardware.model_copy(update={"description": HOSTILE + "x" * 300}),
                "warnings": [HOSTILE],
            }
        )
        for p in fleet
    ]
    return [
        write_html(solve(fleet, SolveOptions()), folder / "fleet.html", profiles=str(profiles)),
        write_html(solve(fleet, SolveOptions(method="card", rounds=60, channel="poor")), folder / "rounds.html"),
        write_html(solve(hostile, SolveOptions(w=0.8)), folder / "hostile.html", profiles="a folder" * 30),
    ]


def main() -> int:
    """Write the reports, look at them, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=Path, default=Path("profiles/letter"))
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path in reports(given.profiles, given.output or Path(scratch)):
            for record in look(path, given.output):
                wrong = faults(record)
                failed += bool(wrong)
                print(
                    f"{path.name:13} {path.stat().st_size / 1e6:5.2f} MB  {record['scheme']:5} {record['width_px']:5} px  "
                    f"{record['figures']:3} figures  contrast {record['contrast']:4.1f}  loaded in {record['load_s']:.2f} s  "
                    f"{'; '.join(wrong) or 'well'}"
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
