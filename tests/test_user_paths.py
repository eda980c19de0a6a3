"""Where caches lie for a user who has no home: no HOME and no entry in passwd, as in many containers."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from gog_edge.cli.main import run
from gog_edge.disk import paths
from gog_edge.errors import DialectError
from gog_edge.native import build


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "GOG_EDGE_CACHE", "GOG_EDGE_LIBRARY"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: object) -> None:
        raise KeyError("no entry")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    paths._homeless.cache_clear()
    return tmp_path / f"gog-edge-{os.getuid()}"


def test_a_user_without_a_home_has_a_private_cache(homeless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paths.cache_directory() == homeless
    assert stat.S_IMODE(homeless.stat().st_mode) == 0o700
    assert build.cache_directory() == homeless / "native"
    assert run(["doctor", "--json"]) == 0
    assert "free for caches" in capsys.readouterr().out


@pytest.mark.parametrize("taken", ["file", "link", "open"])
def test_a_name_that_others_took_is_not_used(homeless: Path, tmp_path: Path, taken: str) -> None:
    if taken == "file":
        homeless.write_text("")
    elif taken == "link":
        (tmp_path / "theirs").mkdir()
        homeless.symlink_to(tmp_path / "theirs")
    else:
        homeless.mkdir()
        homeless.chmod(0o777)
    found = paths.cache_directory()
    assert found != homeless and stat.S_IMODE(found.stat().st_mode) == 0o700
    assert paths.cache_directory() == found  # one for the whole process


def test_a_tilde_that_leads_nowhere_is_an_ordinary_path(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gog_edge.dialects import load

    with pytest.raises(DialectError, match="no dialect file"):
        load("~/no.toml")
    monkeypatch.setenv("GOG_EDGE_CACHE", "~nobody-here/cache")
    assert paths.cache_directory() == Path("~nobody-here/cache")


def test_such_a_user_asks_with_a_bundle_of_its_own(
    homeless: Path, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tiny_bundle)]) == 0
    assert run(["ask", str(photo), "what?", "--bundle", str(tiny_bundle), "--max-turns", "1"]) in (0, 1)
    assert run(["ask", str(photo), "what?"]) == 2  # no library, no default: one line
    assert "Traceback" not in capsys.readouterr().err
