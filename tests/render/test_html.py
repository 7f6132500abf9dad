from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest

from netdoctor.finding import Fix, Location
from netdoctor.recording import Excerpt, Recording
from netdoctor.render import figures, html
from netdoctor.render.layertable import layer_rows
from netdoctor.report import Report
from tests.render import builders

Golden = Callable[[str, str], None]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects what a browser would see, and that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: set[str] = set()
        self.attributes: set[str] = set()
        self.headings: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open += [] if tag in VOID else [tag]
        self.attributes |= {name for name, _ in attrs}
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        for name, value in attrs:
            self.ids[value or ""] += name == "id"
            if name in {"href", "src", "xlink:href"}:
                self.links.add(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def cases() -> dict[str, tuple[Report, Recording | None]]:
    usual, deep, broken = builders.recording(), builders.recording(150, growth=1.3), builders.recording(nan_at=2)
    return {
        "sick": (builders.sick(usual), usual),
        "deep": (builders.sick(deep), deep),
        "nan": (builders.sick(broken), broken),
        "healthy": (builders.healthy(), builders.recording(growth=1.02)),
        "unseen": (builders.unseen(), None),
        "evil": (builders.evil(), usual),
        "empty recording": (builders.unseen(), Recording()),
    }


@cache
def page_of(name: str) -> str:
    """Drawing takes long, so each page is made once."""
    return html.render(*cases()[name])


def bare(text: str) -> str:
    """The page without figures, style and script: what a golden can hold."""
    text = re.sub(r"(?s)<svg .*?</svg>", "<svg/>", text)
    text = re.sub(r"(?s)<style>.*?</style>|<script>.*?</script>", "", text)
    return re.sub(r"sha256-[^']*", "sha256", text)


@pytest.mark.parametrize("name", ["sick", "healthy", "unseen"])
def test_structure(golden: Golden, name: str) -> None:
    golden(f"{name}.html", bare(page_of(name)))


@pytest.mark.parametrize("name", cases())
def test_pages_are_sound_and_alone(name: str) -> None:
    text = page_of(name)
    page = Page(text)
    assert not page.open
    assert max(page.ids[i] for i in page.ids if i) == 1
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert all(link.startswith("#") for link in page.links)
    assert page.tags["script"] == 1
    assert not {a for a in page.attributes if a.startswith("on")}
    assert page.tags["h1"] == 1
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert "could not be drawn" not in text
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_policy_allows_our_script_only() -> None:
    text = html.render(builders.unseen())
    script = re.search(r"(?s)<script>(.*?)</script>", text)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_figures_have_words_and_follow_the_theme() -> None:
    text = page_of("sick")
    drawn = re.findall(r"<svg [^>]*>", text)
    assert all("aria-label=" in tag or "aria-hidden" in tag for tag in drawn)
    assert len(drawn) > 8
    assert "var(--figure-ink)" in text
    assert "var(--error)" in text


def test_a_figure_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in <b>matplotlib</b>")

    for name in ("loss_curve", "trial", "arms"):
        monkeypatch.setattr(figures, name, fail)
    made = builders.recording()
    text = html.render(builders.sick(made), made)
    assert "ZeroDivisionError: in &lt;b&gt;matplotlib" in text
    assert "The signal through the layers" in text
    assert "nn.init.kaiming_normal_" in text


def test_advice_is_hidden_and_counted() -> None:
    hidden, shown = (html.render(builders.healthy(), advice=advice) for advice in (False, True))
    assert "1 remark of advice is hidden" in hidden
    assert "weight_decay=0.01" not in hidden
    assert "is hidden" not in shown
    assert "weight_decay=0.01" in shown


def test_layers_say_their_health() -> None:
    made = builders.recording()
    findings = builders.sick(made).findings[:2]
    made.layers.append(replace(made.layers[-1], path="unseen"))
    rows = layer_rows(made, findings)
    assert [row.findings for row in rows] == [(1,), (1, 2), (1,), (), (1,), (1,), ()]
    assert [row.health for row in rows[-2:]] == ["no finding", "not measured"]
    assert rows[0].activation == "12 → 11.9"
    assert rows[0].source == "train.py:14"
    broken = layer_rows(builders.recording(nan_at=2), ())
    assert {row.health for row in broken} == {"not a number"}


def _luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_can_be_read_on_every_ground(theme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    style = re.search(r"(?s)<style>(.*?)</style>", page_of("unseen"))
    assert style is not None
    blocks = {"light": style[1].split("@media")[0], "dark": style[1].split("@media (prefers-color-scheme: dark)")[1]}
    blocks["print"] = style[1].split("@media print")[1]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", blocks[theme].split("}")[0]))
    colours = {name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for name, c in colours.items()}
    assert len(colours) >= 13
    grounds = ["ground", "raised", "sunken"]
    pairs = [(text, on) for text in ("ink", "soft", "accent", "error", "warning", "advice", "good") for on in grounds]
    pairs += [("ink", on) for on in ("marked", "new", "old")] + [("figure-ink", "ground")]
    for text, on in pairs:
        bright, dim = sorted((_luminance(colours[text]), _luminance(colours[on])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, on)


def test_source_lines_and_changes_stand_in_the_page_escaped() -> None:
    made = builders.recording()
    lines = ("class Net:", "    def __init__(self):", "        self.a = nn.ReLU(), <b>", "        pass")
    made.excerpts = [Excerpt("train.py", 13, lines)]
    finding = replace(builders.dead(made), location=Location("body.1", file="train.py", line=15, text=lines[2].strip()))
    finding = replace(finding, fixes=(Fix("f", "s", "self.a = nn.LeakyReLU(), <b>"),))
    text = html.render(builders.sick(made, findings=(finding,)), made)
    assert '<mark><span class="number">15</span>        self.a = nn.ReLU(), &lt;b&gt;\n</mark>' in text
    assert (
        '<del><span class="number">15</span><span class="sign">-</span>        self.a = nn.ReLU(), &lt;b&gt;\n' in text
    )
    assert (
        '<ins><span class="number"></span><span class="sign">+</span>        self.a = nn.LeakyReLU(), &lt;b&gt;\n'
        in text
    )
    assert '<code class="paste" hidden>self.a = nn.LeakyReLU(), &lt;b&gt;</code>' in text
