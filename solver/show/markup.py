"""Markup out of text: everything is escaped unless it is `Safe`, and the look of the page.

Strings become markup in one place, `cell`; no other module writes ``<`` around a text that it did not make itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from profiler.profile import printable


class Safe(str):
    """Markup of our own making: not escaped again."""


def cell(value: object) -> Safe:
    """Text as markup. Everything that comes out of a profile or an option goes through here."""
    return value if isinstance(value, Safe) else Safe(escape(printable(str(value))))


def tag(name: str, *inside: object, **attributes: object) -> Safe:
    """An element. ``class_`` is written ``class``, ``aria_label`` ``aria-label``."""
    given = "".join(f' {k.rstrip("_").replace("_", "-")}="{cell(v)}"' for k, v in attributes.items() if v is not None)
    return Safe(f"<{name}{given}>{''.join(cell(part) for part in inside)}</{name}>")


def join(parts: Iterable[object]) -> Safe:
    return Safe("".join(cell(part) for part in parts))


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, words: Sequence[int] = (0,)
) -> Safe:
    """A table with its first column as row headings; columns not in ``words`` hold figures and stand right."""

    def kind(k: int) -> str | None:
        return None if k in words else "n"

    head = tag("tr", *(tag("th", name, scope="col", class_=kind(k)) for k, name in enumerate(header)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", value, class_=kind(k)) for k, value in enumerate(row[1:], start=1)),
        )
        for row in rows
    ]
    inside = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", inside, class_="wide", role="region", aria_label=caption, tabindex="0")


def document(title: str, sections: Iterable[object]) -> str:
    """A whole page that loads nothing: its policy forbids scripts and every address but images inside it."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = join(
        [
            Safe('<meta charset="utf-8">'),
            Safe(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Safe('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Safe('<meta name="color-scheme" content="light dark">'),
            tag("title", title),
            tag("style", Safe(STYLE)),
        ]
    )
    body = tag("main", *sections)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}</body>\n</html>\n'


STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#dfe4ea;--paper:#fff;--panel:#f6f8fa;--accent:#2a5d9f;--warn:#8a5a00;
--warnbg:#fff6e0;--good:#1d6b35;--energy:#228833;--other:#aa3377}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9f0;--soft:#9aa7b6;--line:#303a47;--paper:#12171e;--panel:#1a212b;--accent:#86b6f2;
--warn:#f0c76a;--warnbg:#2c2412;--good:#7fd196;--energy:#5fc777;--other:#e58fbe}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:76rem;margin:0 auto;padding:2rem clamp(1rem,3vw,2.5rem) 4rem}
h1{font-size:clamp(1.5rem,3.4vw,2.2rem);line-height:1.2;margin:.2rem 0 .6rem;letter-spacing:-.01em;overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.35rem;margin:3rem 0 .6rem;padding-top:1.1rem;border-top:1px solid var(--line)}
h3{font-size:1.1rem;margin:0 0 .4rem;overflow-wrap:anywhere}
p{margin:.5rem 0;max-width:75ch;overflow-wrap:anywhere}
a{color:var(--accent)}
.brand{font-weight:600;color:var(--accent);letter-spacing:.04em;margin:0}
.lead{font-size:1.08rem;color:var(--soft)}.lead b{color:var(--ink)}
.small{font-size:.87rem;color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.8rem;margin:1.4rem 0}
.facts div{background:var(--panel);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem}
dt{font-size:.85rem;color:var(--soft)}dd{margin:0;font-size:1.45rem;font-weight:600;font-variant-numeric:tabular-nums}
dd small{display:block;font-size:.8rem;font-weight:400;color:var(--soft)}
.note{border-left:3px solid var(--accent);padding:.4rem .9rem;background:var(--panel);border-radius:0 .4rem .4rem 0}
.note.good{border-color:var(--good)}
.warnings{list-style:none;margin:1rem 0;padding:.6rem 1rem;background:var(--warnbg);color:var(--warn);border-radius:.5rem}
.warnings li{overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:1rem 0;border:1px solid var(--line);border-radius:.6rem}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-size:.85rem;color:var(--soft);padding:.6rem .9rem .2rem}
th,td{padding:.42rem .9rem;text-align:left;vertical-align:top;border-top:1px solid var(--line);overflow-wrap:break-word}
thead th{border-top:0;font-weight:600;font-size:.85rem;color:var(--soft);vertical-align:bottom}
tbody th{font-weight:600;min-width:9rem;max-width:24rem}
@media(min-width:45rem){article tbody th,.short tbody th{white-space:nowrap}}
.n{text-align:right;white-space:nowrap}thead .n{white-space:normal}
tbody tr:hover{background:var(--panel)}
.bar{display:flex;height:.55rem;min-width:6.5rem;margin-top:.3rem;border-radius:.2rem;overflow:hidden;background:var(--line)}
.bar i{display:block;height:100%}
.keys{font-size:.87rem;color:var(--soft)}.key{display:inline-block;margin-right:.9rem;white-space:nowrap}
.key i{display:inline-block;width:.75rem;height:.75rem;border-radius:.15rem;margin-right:.35rem;vertical-align:-.08rem}
article{background:var(--panel);border:1px solid var(--line);border-radius:.8rem;padding:1.2rem clamp(.8rem,2vw,1.4rem);margin:1.2rem 0}
article .wide{background:var(--paper)}
.why{font-size:1.03rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem;margin:1rem 0}
figure{margin:0;min-width:0}
figure svg{width:100%;height:auto;display:block;stroke-linejoin:round;stroke-linecap:butt}
figure svg text{font-family:inherit!important}
figcaption{font-size:.85rem;color:var(--soft)}
.reasons{padding-left:1.1rem}.reasons li{margin:.4rem 0;max-width:80ch}
pre{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere}
@page{margin:14mm}
@media print{
.figures{grid-template-columns:repeat(3,1fr);gap:.5rem}h2{margin:1.4rem 0 .4rem}figcaption{font-size:7.5pt}
:root{--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--panel:#fff;--accent:#000;--warn:#000;--warnbg:#fff;--good:#000}
body{font-size:10.5pt}main{max-width:none;padding:0}article,figure,tr,.facts div{break-inside:avoid}h2,h3{break-after:avoid}
.wide{overflow:visible;break-inside:avoid-page}th,td{padding:.25rem .3rem;font-size:8pt}tbody th{min-width:0}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
"""Light and dark, narrow and wide, on paper."""

FRAGMENT_STYLE = """
.card-solve table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.card-solve caption{text-align:left;opacity:.7}
.card-solve .n{text-align:right}
.card-solve th,.card-solve td{padding:.25rem .7rem}
.card-solve .bar{display:flex;height:.5rem;min-width:6rem;border-radius:.2rem;overflow:hidden}
.card-solve .bar i{display:block;height:100%}
.card-solve .warnings{opacity:.85}
"""
