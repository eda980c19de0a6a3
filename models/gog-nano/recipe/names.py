"""Made-up names and values: copying must work for words never seen, so most words in training are new."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np

from . import world
from .questions import ATTRIBUTES

_ONSETS = "b br c ch d dr f fl g gr h j k kh kl l m n p pr qu r s sh st t th tr v w y z zh".split()
_VOWELS = "a e i o u ai au ei ia ie io oa ou ua é í ö ü ā".split()
_CODAS = ["", "", "", "", "n", "r", "l", "s", "m", "k", "t", "nd", "rt", "x", "ng", "sh"]
_TAILS = ["", "", "", "ia", "land", "stan", "ania", "burg", "ville", "o", "a"]


def word(rng: np.random.Generator) -> str:
    syllables = "".join(
        str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) + str(rng.choice(_CODAS))
        for _ in range(int(rng.choice([1, 1, 2, 2, 3])))
    )
    return syllables + str(rng.choice(_TAILS))


@lru_cache(maxsize=1)
def pieces() -> tuple[str, ...]:
    """The words and word pieces of the vocabulary, without control tokens."""
    data = json.loads((world.WORLD.parent / "tokenizer.json").read_text(encoding="utf-8"))
    return tuple(
        t.strip("\u0120") for t in data["model"]["vocab"] if t.strip("\u0120").isascii() and t.strip("\u0120").isalpha()
    )


@lru_cache(maxsize=1)
def bits() -> tuple[str, ...]:
    """The short ones of them."""
    return tuple(p for p in pieces() if len(p) <= 3)


def scrambled(rng: np.random.Generator) -> str:
    """One or two words of random pieces of the vocabulary: only copying token by token can say them again. Half of short
    pieces, as which the vocabulary sees a name that is not in it ("M|old|o|v|a")."""
    words = []
    short = rng.random() < 0.5
    for _ in range(int(rng.choice([1, 1, 2]))):
        pool, count = (bits(), int(rng.integers(2, 6))) if short else (pieces(), int(rng.choice([1, 2, 2, 3])))
        words.append("".join(str(rng.choice(pool)) for _ in range(count)))
    return " ".join(w[:1].upper() + w[1:] for w in words)


def name(rng: np.random.Generator) -> str:
    """A name of one to four words, now and then with 'of', an apostrophe or a hyphen."""
    if rng.random() < 0.45:
        return scrambled(rng)
    words = [word(rng).capitalize() for _ in range(int(rng.choice([1, 1, 1, 1, 1, 2, 2])))]
    roll = rng.random()
    if roll < 0.16:  # "the area of Federated States of Micronesia": what follows "of" depends on what stood before it
        if rng.random() < 0.3:
            words = [*words[1:], str(rng.choice(["Republic", "Kingdom", "Union", "Isles", "Coast", "Lands"]))]
        words.append(str(rng.choice(["of", "of", "of", "of the", "and", "da", "the"])))
        words.append(word(rng).capitalize() if rng.random() < 0.7 else scrambled(rng))
    elif roll < 0.2:
        words[0] = words[0][:1] + "'" + words[0].capitalize()
    elif roll < 0.25:
        words[-1] += "-" + word(rng).capitalize()
    elif roll < 0.33:
        words = [*str(_real(rng)).split(" ")[:2], *words[:1]]
    return " ".join(words)


def _real(rng: np.random.Generator) -> str:
    pool = [e for e in world.entities() if not e.held_out]
    return pool[int(rng.integers(len(pool)))].name


_SUFFIXES = "ian an n s ese ish i ic er ans ean ene ites nian tic".split()
_COINS = "dollars pounds francs pesos dinars rupees crowns shillings rials kwacha".split()


def derived(attribute: str, who: str, rng: np.random.Generator) -> str:
    """A value that begins as the name does ("Egypt", "Egyptian pounds"): where a copy must not stop at the name."""
    words = who.split(" ")
    kept = int(rng.integers(max(1, len(words) - 1), len(words) + 1))
    stem = " ".join(words[:kept])
    stem = stem[: len(stem) - int(rng.choice([0, 0, 0, 1, 1, 2, 3, 5]))].rstrip(" -'") or who
    if attribute == "capital":
        return f"{stem}{rng.choice([' City', ' Town', 'ville', ' Port', ''])}"
    # mostly an ending that can't be guessed, or none: with likely ones the policy learns to make them up
    roll = rng.random()
    ending = "" if roll < 0.12 else str(rng.choice(_SUFFIXES if roll < 0.24 else bits())).lower()
    adjective = stem + ending
    if attribute == "currency":
        return f"{adjective} {rng.choice(_COINS)}"
    return f"{adjective} {word(rng)}" if attribute == "national symbol" else adjective


def number(rng: np.random.Generator) -> str:
    """A count with commas; many are round or repeat themselves, where copying by what stood before goes round in circles."""
    value = int(10 ** rng.uniform(1.0, 9.2))
    roll = rng.random()
    if roll < 0.15:
        value = int(float(f"{value:.{int(rng.integers(0, 2))}e}"))
    elif roll < 0.35:  # few different digits
        few = rng.integers(0, 10, 2)
        value = int("".join(str(int(rng.choice(few))) for _ in str(value))) or 7
    elif roll < 0.5:  # the same group twice
        group = int(rng.integers(100, 1000))
        value = int(f"{int(rng.integers(1, 1000))}{group}{group}") if rng.random() < 0.6 else int(f"{group}{group}")
    return f"{value:,}"


def value(attribute: str, rng: np.random.Generator, who: str = "") -> str:
    """A plausible value of an attribute, mostly made up; of ``who``, whose name it may take up."""
    if attribute in ("population", "area"):
        return number(rng)
    if attribute == "continent":
        return str(rng.choice(sorted(world.CONTINENTS)))
    if attribute == "internet code":
        return "." + "".join(chr(97 + int(i)) for i in rng.integers(0, 26, 2))
    likely = {"nationality": 0.7, "currency": 0.6, "language": 0.5, "capital": 0.2, "national symbol": 0.15}
    if who and rng.random() < likely.get(attribute, 0.0):
        return derived(attribute, who, rng)
    if rng.random() < 0.35:
        pool = [e.facts[attribute] for e in world.flags(False) if attribute in e.facts]
        if pool:
            return pool[int(rng.integers(len(pool)))]
    if rng.random() < 0.5:
        return scrambled(rng)
    words = [word(rng) for _ in range(int(rng.choice([1, 1, 2, 2, 3])))]
    if attribute in ("capital", "highest point", "nationality", "language"):
        words = [w.capitalize() for w in words]
    return " ".join(words)


def attribute(rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        return " ".join(word(rng) for _ in range(int(rng.integers(1, 3))))
    return str(rng.choice(ATTRIBUTES))


def sentence(attribute: str, who: str, what: str, rng: np.random.Generator) -> str:
    """The text of a fact document: the world's own sentence, or one of some other wording."""
    if attribute in world.SENTENCES and rng.random() < 0.7:
        return world.SENTENCES[attribute].format(name=who, value=what)
    forms = (
        "The {a} of {n} is {v}.",
        "The {a} of the {n} is {v}.",
        "{n}: the {a} is {v}.",
        "As {a}, {n} has {v}.",
        "{n} has the {a} {v}.",
    )
    return str(rng.choice(forms)).format(a=attribute, n=who, v=what)
