"""Your own search, in Python: here a dictionary; it may as well be your database. Pictures still go to the index."""

from given import given

import gog_edge
from gog_edge.search.base import BaseProvider, Deadline

FACTS = {"Angola": "The capital of Angola is Luanda.", "Peru": "The capital of Peru is Lima."}


class Facts(BaseProvider):
    """Text search over `FACTS`. A provider may be called from several threads, and must end by the deadline."""

    name = "facts"
    kinds = frozenset({"text"})

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[gog_edge.Hit]:
        found = [name for name in FACTS if name.lower() in query.lower()]
        print(f"  asked for {query!r}, found {found}")
        return [gog_edge.Hit(f"{name}: capital", FACTS[name], source="facts", entity=name) for name in found[:k]]


args = given("What is the capital of the country of the second flag from the left?")
with gog_edge.load(args.bundle, index=args.index, providers=[Facts()]) as policy:
    print("it asks", [provider.name for provider in policy.providers], "in this order")
    print(policy.ask(args.picture, args.question).text)
with gog_edge.load(args.bundle, providers=[Facts()]) as policy:  # nobody knows pictures here
    print(policy.ask(args.picture, args.question).text or "no answer")
