"""The readable text of an HTML page: blocks judged by length and link density, boilerplate elements left out.

A small classifier in the spirit of jusText (Pomikálek, "Removing Boilerplate and Duplicate Content from Web Corpora",
2011), without stop word lists, so that it serves every language: long blocks with few links are good, short ones are
good between good ones, headings belong to what follows. Work and output are bounded, whatever the page holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

from gog_edge.deadline import SYSTEM, Clock

MAX_HTML_CHARS = 4_000_000
MAX_SECONDS = 1.0  # hostile markup can make a parser slow; what was read until then is used
_PIECE = 1 << 16
_REST = 4096
MAX_BLOCKS = 20_000
MAX_DEPTH = 400


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SKIPPED = _names("script style noscript template svg math iframe object embed canvas select button form")
_BOILERPLATE = _names("nav footer aside header menu dialog")
_BLOCKS = _names(
    "p div section article main ul ol dl table tr blockquote pre figure figcaption details summary address "
    "h1 h2 h3 h4 h5 h6 li dt dd br hr td th caption body"
)
_VOID = _names("area base br col embed hr img input link meta source track wbr")
_HEADINGS = _names("h1 h2 h3 h4 h5 h6")
_ROLES = frozenset({"navigation", "banner", "contentinfo", "complementary", "search", "dialog"})
_UNWANTED = re.compile(
    r"(^|[-_ ])(nav|navbar|menu|breadcrumbs?|footer|sidebar|share|social|cookie|consent|advert\w*|ads?|promo|related|"
    r"comments?|newsletter|subscribe|popup|modal|banner|skip)([-_ ]|$)",
    re.IGNORECASE,
)
_SPACES = re.compile(r"[ \t\r\f\v\u00a0\u200b]+")

GOOD_CHARS = 80  # of a block that stands on its own
SHORT_CHARS = 20  # of a block that counts between good ones
MAX_LINKS = 0.45  # share of a good block's characters that may be link text


@dataclass
class Block:
    """One block of text: its tag, how much of it is link text, whether it stands inside <main> or <article>."""

    tag: str
    text: str
    links: int
    main: bool

    @property
    def link_density(self) -> float:
        return self.links / max(len(self.text), 1)


@dataclass(frozen=True)
class Extracted:
    """Title and text of a page."""

    title: str
    text: str


def extract(page: str, clock: Clock = SYSTEM) -> Extracted:
    """Readable text of an HTML document; all of its text when nothing looks like an article."""
    parser = _Blocks()
    until = clock.now() + MAX_SECONDS
    for at in range(0, min(len(page), MAX_HTML_CHARS), _PIECE):
        parser.feed(page[at : at + _PIECE])
        if clock.now() > until or len(parser.blocks) >= MAX_BLOCKS:
            break
    # What is left is an unfinished tag or comment. Closing scans it again and again: only worth it for a short one.
    if len(parser.rawdata) < _REST:
        parser.close()
    parser.end_block()
    blocks = parser.blocks
    in_main = [b for b in blocks if b.main]
    if sum(len(b.text) for b in in_main) >= 0.3 * sum(len(b.text) for b in blocks if b.link_density < MAX_LINKS):
        blocks = in_main
    good = _good(blocks)
    if sum(len(b.text) for b in good) < 200:
        good = [b for b in blocks if b.link_density < 0.8] or blocks
    title = parser.title() or next((b.text for b in parser.blocks if b.tag == "h1"), "")
    return Extracted(" ".join(title.split())[:500], "\n".join(_line(b) for b in good))


def _good(blocks: list[Block]) -> list[Block]:
    """Blocks to keep, in order."""
    kind = [_kind(b) for b in blocks]
    keep = [k == "good" for k in kind]
    # Short blocks count when the next judged block on either side is good.
    before = False
    near_before: list[bool] = []
    for k in kind:
        near_before.append(before)
        before = k == "good" if k in ("good", "bad") else before
    after = False
    for i in range(len(blocks) - 1, -1, -1):
        k = kind[i]
        if k == "short":
            keep[i] = near_before[i] and after
        elif k == "heading":
            keep[i] = after
        if k in ("good", "bad"):
            after = k == "good"
    return [b for b, k in zip(blocks, keep) if k]


def _kind(block: Block) -> str:
    size = len(block.text)
    if block.tag in _HEADINGS:
        return "heading" if block.link_density < 0.9 else "bad"
    if block.tag == "tr" and " | " in block.text:
        return "good" if block.link_density < 0.9 else "short"  # a fact in a table, however short
    if block.link_density > MAX_LINKS:
        return "bad" if size >= SHORT_CHARS else "short"
    if size >= GOOD_CHARS or (block.tag in ("dd", "pre", "blockquote", "figcaption") and size >= SHORT_CHARS):
        return "good"
    return "short"


def _line(block: Block) -> str:
    if block.tag in _HEADINGS:
        return f"\n{block.text}"
    return f"- {block.text}" if block.tag == "li" else block.text


class _Blocks(HTMLParser):
    """Splits a page into blocks while it is read."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._stack: list[str] = []
        self._skip_at: int | None = None  # depth at which a skipped element began
        self._main = 0
        self._link = 0
        self._text: list[str] = []
        self._link_chars = 0
        self._tag = "body"
        self._in_title = False
        self._title: list[str] = []
        self._og_title = ""

    def title(self) -> str:
        return self._og_title or " ".join("".join(self._title).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "meta":
            if named.get("property") == "og:title" and not self._og_title:
                self._og_title = (named.get("content") or "")[:500]
            return
        if tag == "title":
            self._in_title = not self._title
        if tag in _BLOCKS:
            # Cells stay in the line of their row.
            if tag in ("td", "th") and self._tag == "tr":
                self._text.append(" | " if any(t.strip() for t in self._text) else "")
            else:
                self.end_block()
                self._tag = tag
        if tag in _VOID:
            return
        if len(self._stack) >= MAX_DEPTH:
            return
        self._stack.append(tag)
        if self._skip_at is None and self._unwanted(tag, named):
            self._skip_at = len(self._stack)
        self._main += tag in ("main", "article")
        self._link += tag == "a"

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if tag not in self._stack:
            return
        while self._stack:
            name = self._stack.pop()
            if name in _BLOCKS and name not in ("td", "th"):
                self.end_block()
            self._main -= name in ("main", "article")
            self._link -= name == "a"
            if self._skip_at is not None and len(self._stack) < self._skip_at:
                self._skip_at = None
            if name == tag:
                break
        if tag in _BLOCKS and tag not in ("td", "th"):
            self._tag = next((t for t in reversed(self._stack) if t in _BLOCKS), "body")

    def parse_html_declaration(self, i: int) -> int:
        # Several Python versions raise AssertionError on a malformed `<![…`; HTML takes it for a comment.
        try:
            return super().parse_html_declaration(i)
        except AssertionError:
            return self.parse_bogus_comment(i)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data[:500])
            return
        if self._skip_at is not None or len(self.blocks) >= MAX_BLOCKS:
            return
        self._text.append(data)
        if self._link > 0:
            self._link_chars += len(" ".join(data.split()))

    def end_block(self) -> None:
        """Close the block that is being collected."""
        text = _SPACES.sub(" ", "".join(self._text))
        lines = [line.strip() for line in text.split("\n")]
        joined = "\n".join(filter(None, lines)) if self._tag == "pre" else " ".join(filter(None, lines))
        joined = joined.strip(" |")
        if joined and len(self.blocks) < MAX_BLOCKS:
            self.blocks.append(Block(self._tag, joined, min(self._link_chars, len(joined)), self._main > 0))
        self._text, self._link_chars = [], 0

    def _unwanted(self, tag: str, attrs: dict[str, str | None]) -> bool:
        if tag in _SKIPPED:
            return True
        if tag in ("html", "body", "main", "article", "h1"):
            return False
        if tag in _BOILERPLATE and not (tag == "header" and self._main):
            return True
        if attrs.get("role") in _ROLES or attrs.get("aria-hidden") == "true" or "hidden" in attrs:
            return True
        named = f"{attrs.get('class') or ''} {attrs.get('id') or ''}"
        return tag in ("div", "section", "ul", "ol", "p", "span", "table") and bool(_UNWANTED.search(named[:300]))
