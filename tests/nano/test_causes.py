"""The sorting of wrong answers by their first wrong step."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")


def _record(skill: str) -> dict[str, Any]:
    from recipe import evalset

    return next(r for r in evalset.load() if r["skill"] == skill and r["rule"] in ("value", "name") and not r["fault"])


def _turns(record: dict[str, Any]) -> list[str]:
    """What the teacher itself would say, with the world's own facts."""
    from recipe import evalset, teacher, world
    from recipe.questions import line

    scene, question, _, _ = evalset.asked(record)
    entity = world.entity(record["entities"][0])
    listed = teacher.parse_list(scene)
    first = f"{listed}\nTarget{' and'.join(question.clues)}.\n{line(scene.items, question.targets[0])}\n</think>"
    search = f'It is {entity.name}.\n</think>{{"query": "the {question.attribute} of {entity.name}"}}'
    return [first, search, f"It is {entity.facts.get(question.attribute, '')}.\n</think>\n<answer> x</answer>"]


def test_each_wrong_step_has_its_name() -> None:
    from recipe import causes

    record = _record("two-hop")
    turns = _turns(record)
    name = turns[1].split("It is ")[1].split(".\n")[0]

    def cause(change: dict[int, tuple[str, str]], stop: str = "answered") -> str:
        said = [t.replace(*change[i]) if i in change else t for i, t in enumerate(turns)]
        assert not change or said != turns
        return causes.cause(record, {"turns": said, "stop": stop})

    assert cause({}).startswith("answer")
    assert cause({}, "forced") == "ended by forced"
    assert cause({0: ("1: ", "1 ")}).startswith("list: a flag too many or too few")
    assert cause({0: ("Target", "Target 9 and")}).startswith("target")
    assert cause({1: ("It is", "Low score. It is")}).startswith("search: the right flag")
    assert cause({1: (name, "Atlantis")}).startswith("search: another flag")
    assert cause({1: ('{"query": "the ', '{"query": "no ')}).startswith(("fact: asked", "answer"))
    assert cause({2: ("It is ", "It is not ")}).startswith("answer")


def test_only_wrong_answers_are_counted() -> None:
    from recipe import causes

    record = _record("two-hop")
    row = {"id": record["id"], "turns": _turns(record), "stop": "answered"}
    assert sum(causes.count({"rows": [{**row, "right": True}]}).values()) == 0
    assert sum(causes.count({"rows": [{**row, "right": False}]}).values()) == 1
