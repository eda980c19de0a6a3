"""The peers are found through an entry point, and gog-edge says what to do without them."""

from __future__ import annotations

import pytest

from gog_edge.bench import peers
from gog_edge.bench.scenarios import crop
from gog_edge.cli.main import run
from gog_edge.registry import Registry
from gog_edge_peers.entry import PEERS


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", Registry("gog_edge.nothing", peers.Peers))


def test_the_installed_distribution_is_found() -> None:
    assert peers.find_peers() is PEERS


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "agent", "--compare", "transformers"],
        ["bench", "peers"],
        ["bench", "peers", "list"],
        ["bench", "peers", "install", "transformers", "--dry-run"],
        ["bench", "peers", "--help"],
    ],
)
@pytest.mark.usefixtures("without")
def test_without_it_every_command_says_how_to_install_it(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install ./peers" in said


@pytest.mark.usefixtures("without")
def test_without_it_the_group_still_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    assert "not installed" in capsys.readouterr().out


@pytest.mark.usefixtures("without")
def test_without_it_crops_are_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop, "FRAME", (400, 300))
    monkeypatch.setattr(crop, "BOX", (120.0, 90.0, 298.0, 224.0))
    assert [c.subject for c in crop.crop_cells(1)] == ["gog-edge", "gog-edge 2 threads", "Pillow + numpy"]
