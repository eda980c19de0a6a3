"""Times of reading pages, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from studies.page_reading import command as read_pages
from tests.search.test_text_encoder import make as make_text_encoder


def test_reading_times_are_measured(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    page.write_text("<title>Chad</title><p>" + "The capital of Chad is N'Djamena. " * 50, encoding="utf-8")
    result = CliRunner().invoke(read_pages, [str(page), "--query", "capital", "--chars", "100"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1])["pages"] == 1
    with_meaning = [str(page), "--query", "where is the cat", "--embedder", str(make_text_encoder(tmp_path / "text"))]
    result = CliRunner().invoke(read_pages, with_meaning)
    assert result.exit_code == 0, result.output
