"""The guard's cues, read from `data/guard.toml`, and the folded view of a text that they are looked for in."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SCRIPT = "SCRIPT"  # in `needs`: a letter of one of the scripts below (Cyrillic, Arabic, Korean, Japanese, Chinese)
_SCRIPTS = r"[\u0400-\u06ff\u1100-\u11ff\u3040-\u9fff]"
_MACRO = re.compile(r"\{([A-Z]+)\}")
_UNSEEN = frozenset(("Mn", "Me", "Cc", "Cf", "Cs", "Co", "Cn"))  # marks on letters, and what has no shape of its own
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters by category, blank to the eye


@dataclass(frozen=True)
class Found:
    """A cue in a sentence: its weight, and where in the sentence it begins and ends."""

    name: str
    weight: float
    start: int
    end: int


@dataclass(frozen=True)
class Cues:
    """Everything compiled."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    patterns: tuple[tuple[re.Pattern[str], ...], ...]
    needed: dict[str, int]  # word -> the cues that ask for it, one bit each
    behind: int  # the cues that count only right behind a withheld sentence
    signs: tuple[tuple[str, int], ...]
    foreign: int  # the cues that ask for a letter of `script`
    script: re.Pattern[str]
    mark: re.Pattern[str]  # with groups: chat, or tag (and close), or json
    mark_begin: re.Pattern[str]
    ends_turn: re.Pattern[str]
    own_turn: re.Pattern[str]  # the header of a turn of the reader's own
    pairs: frozenset[str]  # tags that count only where they are closed
    glued: re.Pattern[str]  # in the text itself: where an order begins behind a title without a stop
    word: re.Pattern[str]

    def wanted(self, sentence: str) -> int:
        """The cues that may be in a sentence of the folded view, one bit each: a word that they need is."""
        wanted = 0 if sentence.isascii() or not self.script.search(sentence) else self.foreign
        needed = self.needed
        for word in self.word.findall(sentence):
            if word in needed:
                wanted |= needed[word]
        for sign, asking in self.signs:
            if sign in sentence:
                wanted |= asking
        return wanted

    def possible(self, wanted: int) -> float:
        """What the wanted cues weigh together, if all are there."""
        return _asked(wanted)[1]

    def search(self, sentence: str, wanted: int, least: float = 0.0) -> list[Found]:
        """Those of the wanted cues that are there, each once; none where they do not weigh `least` together."""
        asked, possible = _asked(wanted)
        if possible < least:
            return []
        found = []
        for at in asked:
            matches = [m for p in self.patterns[at] if (m := p.search(sentence))]
            if matches:
                first, last = min(m.start() for m in matches), max(m.end() for m in matches)
                found.append(Found(self.names[at], self.weights[at], first, last))
            else:
                possible -= self.weights[at]
                if possible < least:
                    return []
        return found

    def marks(self, view: str) -> list[re.Match[str]]:
        """The control marks in a text, in order; one may lie in another."""
        found = (self.mark.match(view, m.start()) for m in self.mark_begin.finditer(view))
        return [m for m in found if m]

    def ends(self, mark: re.Match[str]) -> bool:
        """Whether a mark closes a block or a turn."""
        return bool(mark["close"] or (mark["chat"] and self.ends_turn.search(mark["chat"])))


@lru_cache(maxsize=1)
def cues() -> Cues:
    """Read and compiled at the first use, so that importing costs nothing."""
    table = _table()
    words: dict[str, str] = {}
    for name, pattern in table["words"].items():
        words[name] = _fill(pattern, words)
    mark, needs, entries = table["mark"], table["needs"], list(table["cue"].values())
    needed: dict[str, int] = {}
    for at, cue in enumerate(entries):
        for word in _expand(cue["needs"], needs):
            needed[word] = needed.get(word, 0) | 1 << at
    patterns = [
        [_fill("".join(map(_fold_foreign, p)) if cue.get("fold") else p, words) for p in cue["patterns"]]
        for cue in entries
    ]
    return Cues(
        names=tuple(table["cue"]),
        weights=tuple(float(cue["weight"]) for cue in entries),
        patterns=tuple(tuple(re.compile(p) for p in several) for several in patterns),
        foreign=needed.pop(_SCRIPT, 0),
        script=re.compile(_SCRIPTS),
        signs=tuple((word, needed.pop(word)) for word in list(needed) if not re.fullmatch("[a-z]+", word)),
        needed=needed,
        behind=sum(1 << at for at, cue in enumerate(entries) if cue.get("behind")),
        mark=re.compile(_fill(f"(?P<chat>{mark['chat']})|{mark['tag']}|(?P<json>{mark['json']})", words)),
        mark_begin=re.compile(r"[<\[{&]"),  # far quicker to look for first
        ends_turn=re.compile(mark["ends_turn"]),
        own_turn=re.compile(_fill(mark["own_turn"], words)),
        pairs=frozenset(mark["pairs"].split(" ")),
        glued=re.compile(mark["glued"]),
        word=re.compile("[a-z]+"),
    )


@lru_cache(maxsize=4096)
def _asked(wanted: int) -> tuple[tuple[int, ...], float]:
    """The numbers of wanted cues, heaviest first, and what they weigh together."""
    weights = cues().weights
    asked = [at for at in range(wanted.bit_length()) if wanted >> at & 1]
    return tuple(sorted(asked, key=lambda at: -weights[at])), sum(weights[at] for at in asked)


def fold(text: str) -> tuple[str, list[int] | None]:
    """The view that cues are looked for in, and where in `text` each of its characters stands (None: where it is).

    NFKD, case folding, accents and invisible letters off, letters and signs that look like ASCII ones as those.
    """
    if text.isascii() and not _control().search(text):
        return text.lower(), None
    table = {letter: _fold(letter) for letter in set(text)}
    folded = [table[letter] for letter in text]
    if set(map(len, table.values())) == {1}:
        return "".join(folded), None
    return "".join(folded), [*(at for at, letter in enumerate(folded) for _ in letter), len(text)]


@lru_cache(maxsize=1)
def _control() -> re.Pattern[str]:
    return re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # of the control characters, white space stays


@lru_cache(maxsize=8192)
def _fold(letter: str) -> str:
    if letter in "\t\n\r\u2026":  # white space, and what ends a sentence
        return letter
    look_alikes = _look_alikes()
    parts = unicodedata.normalize("NFKD", letter).casefold()
    return "".join(look_alikes.get(c, c) for c in parts if c not in _BLANK and unicodedata.category(c) not in _UNSEEN)


def _fold_foreign(letter: str) -> str:
    return letter if letter.isascii() else _fold(letter)


@lru_cache(maxsize=1)
def _look_alikes() -> dict[str, str]:
    table = _table()["look_alikes"]
    return dict(zip(table["letters"] + table["signs"], table["latin"] + table["ascii"]))


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    data = resources.files("gog_edge.search").joinpath("data", "guard.toml").read_text(encoding="utf-8")
    return tomllib.loads(data)


def _fill(pattern: str, words: dict[str, str]) -> str:
    return _MACRO.sub(lambda m: words[m[1]], pattern)


def _expand(needs: str, lists: dict[str, str]) -> Iterator[str]:
    for word in needs.split(" "):
        yield from lists[word[1:]].split(" ") if word.startswith("@") else (word,)
