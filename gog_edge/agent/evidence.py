"""Which results hold the answer. The rule, in full:

Answer and results are normalised as in Search-R1 (lower case, no punctuation, no articles, single spaces). A hit
supports the answer when
 - its title or text contains the normalised answer as whole words, or
 - the answer has more than 5 words and at least 60 % of its content words occur in the hit (sentences, not names).
"yes", "no" and answers of one letter have no evidence: they occur everywhere. Hits are listed in the order in which
they came, exact ones first, each once.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from gog_edge.types import Hit, Step

MOST = 5
_LONG = 5
_SHARE = 0.6
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "“”‘’–—…", " "))
_TRIVIAL = frozenset({"", "yes", "no", "unknown", "true", "false"})
_STOP = frozenset(
    ("is", "are", "was", "were", "be", "been", "of", "in", "on", "at", "to", "for", "from", "by", "with", "and", "or",
     "it", "its", "this", "that", "as", "which", "who", "what", "has", "have", "had")
)  # fmt: skip


def normalise(text: str) -> str:
    """Lower case, punctuation and articles removed, spaces collapsed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def supporting(answer: str, steps: Iterable[Step]) -> tuple[Hit, ...]:
    """The hits of `steps` that hold `answer`, at most five."""
    wanted = normalise(answer)
    if wanted in _TRIVIAL or (len(wanted) < 2 and wanted.isascii()):
        return ()
    words = [w for w in wanted.split() if w not in _STOP]
    exact: list[Hit] = []
    close: list[Hit] = []
    seen: set[tuple[str, str, str]] = set()
    for hit in (h for step in steps for o in step.observations for h in o.hits):
        identity = (hit.entity or hit.source, hit.title, hit.text)
        if identity in seen:
            continue
        seen.add(identity)
        held = normalise(f"{hit.title} {hit.text}")
        if f" {wanted} " in f" {held} ":
            exact.append(hit)
        elif len(wanted.split()) > _LONG and words:
            have = set(held.split())
            if sum(w in have for w in words) >= _SHARE * len(words):
                close.append(hit)
    return tuple([*exact, *close][:MOST])
