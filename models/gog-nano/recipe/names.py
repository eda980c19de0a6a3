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
def _pieces() -> tuple[str, ...]:
    """The words and word pieces of the vocabulary, without control tokens."""
    data = json.loads((world.WORLD.parent / "tokenizer.json").read_text(encoding="utf-8"))
    return tuple(
        t.strip("\u0120") for t in data["model"]["vocab"] if t.strip("\u0120").isascii() and t.strip("\u0120").isalpha()
    )


def scrambled(rng: np.random.Generator) -> str:
    """One or two words of random pieces of the vocabulary: only copying token by token can say them again."""
    words = []
    for _ in range(int(rng.choice([1, 1, 2]))):
        words.append("".join(str(rng.choice(_pieces())) for _ in range(int(rng.choice([1, 2, 2, 3])))))
    return " ".join(w[:1].upper() + w[1:] for w in words)


def name(rng: np.random.Generator) -> str:
    """A name of one to four words, now and then with 'of', an apostrophe or a hyphen."""
    if rng.random() < 0.45:
        return scrambled(rng)
    words = [word(rng).capitalize() for _ in range(int(rng.choice([1, 1, 1, 1, 1, 2, 2])))]
    roll = rng.random()
    if roll < 0.06:
        words.insert(len(words) // 2 + 1, str(rng.choice(["of", "and", "da", "the"])))
        words.append(word(rng).capitalize())
    elif roll < 0.12:
        words[0] = words[0][:1] + "'" + words[0].capitalize()
    elif roll < 0.18:
        words[-1] += "-" + word(rng).capitalize()
    elif roll < 0.26:
        words = [*str(_real(rng)).split(" ")[:2], *words[:1]]
    return " ".join(words)


def _real(rng: np.random.Generator) -> str:
    pool = [e for e in world.entities() if not e.held_out]
    return pool[int(rng.integers(len(pool)))].name


def value(attribute: str, rng: np.random.Generator) -> str:
    """A plausible value of an attribute, mostly made up."""
    if attribute in ("population", "area"):
        return f"{int(10 ** rng.uniform(1.0, 9.2)):,}"
    if attribute == "continent":
        return str(rng.choice(sorted(world.CONTINENTS)))
    if attribute == "internet code":
        return "." + "".join(chr(97 + int(i)) for i in rng.integers(0, 26, 2))
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
