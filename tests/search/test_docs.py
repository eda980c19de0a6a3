"""The manual of the search: its files load, its table lists the presets, every key is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gog_edge.search import config
from tests.search.test_text_encoder import make as make_encoder

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", MANUAL, re.DOTALL)


def test_examples_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "MY_KEY", "MY_TOKEN"):
        monkeypatch.setenv(name, "k")
    make_encoder(tmp_path / "minilm")
    assert len(BLOCKS) == 3
    for number, block in enumerate(BLOCKS):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        for provider in config.load_providers(path):
            provider.close()


def test_the_table_of_presets_is_complete() -> None:
    table = MANUAL.partition("| preset |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| ([a-z]+) \|", table, re.MULTILINE)) == config.presets()


def test_every_key_is_in_it() -> None:
    own = {key for table in config._OWN.values() for key in table}
    keys = {*config._SHELL, *config._OPERATION, *config._CALL, *own}
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", MANUAL)] == []
