"""Bundles by name: export without -o, list, remove, and which bundle is taken where none is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import gog_edge
from gog_edge import library
from gog_edge.bundle import MANIFEST
from gog_edge.cli.main import run
from gog_edge.errors import BundleError, UsageError
from tests.cli.asking import ANSWER, TEXT, Play


def put(bundle: Path, name: str, age: int = 0) -> Path:
    """A copy of `bundle` in the library, exported `age` seconds ago."""
    folder = library.directory() / name
    shutil.copytree(bundle, folder)
    then = (folder / MANIFEST).stat().st_mtime - age
    os.utime(folder / MANIFEST, (then, then))
    return folder


def test_an_export_without_a_folder_goes_to_the_library_under_the_checkpoints_name(
    tiny_checkpoints: dict[str, Path], private_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_checkpoints["qwen3_vl"]
    for precision in ("fp32", "fp16"):  # the second replaces the first
        assert run(["export", str(source), "--precision", precision]) == 0
    assert [p.name for p in private_library.iterdir() if not p.name.startswith(".")] == [source.name]
    capsys.readouterr()
    assert run(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["precision"], row["default"]) == (source.name, "fp16", True)
    assert row["bytes"] == sum(f.stat().st_size for f in (private_library / source.name).rglob("*") if f.is_file())
    assert run(["list"]) == 0
    assert f"*  {source.name}" in capsys.readouterr().out


def test_the_name_option_names_it_in_the_library(tiny_checkpoints: dict[str, Path]) -> None:
    assert run(["export", str(tiny_checkpoints["qwen3_vl"]), "--precision", "fp32", "--name", "mine"]) == 0
    assert library.names() == ["mine"]


def test_a_bundle_of_the_library_is_known_by_name_where_a_checkpoint_is_expected(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = put(tiny_bundle, "tiny")
    assert run(["export", "tiny"]) == 2
    assert f"{kept} is a bundle already: only engines can be added" in capsys.readouterr().err


def test_a_name_that_cannot_be_one_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gog_edge.export.checkpoint.reader.Checkpoint.open", lambda *_, **__: pytest.fail("fetched"))
    assert run(["export", "owner/model", "--name", "a/b"]) == 2
    assert "'a/b' can't be the name of a bundle" in capsys.readouterr().err


def test_the_folder_is_named_by_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("GOG_EDGE_LIBRARY", str(tmp_path / "own"))
    assert library.directory() == tmp_path / "own"
    monkeypatch.delenv("GOG_EDGE_LIBRARY")
    assert library.directory() == tmp_path / "data" / "gog-edge" / "bundles"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library.directory() == tmp_path / ".local" / "share" / "gog-edge" / "bundles"


def test_without_a_home_the_message_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOG_EDGE_LIBRARY")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(UsageError, match="set GOG_EDGE_LIBRARY to a folder"):
        library.directory()


def test_a_bundle_in_the_working_folder_comes_before_one_of_the_library(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = put(tiny_bundle, "gog")
    assert library.find("gog") == kept
    (tmp_path / "gog").mkdir()  # a folder that is no bundle, such as the checkpoint, is not meant
    assert library.find("gog") == kept
    shutil.copytree(tiny_bundle, tmp_path / "gog", dirs_exist_ok=True)
    assert library.find("gog") == Path("gog")
    with pytest.raises(BundleError, match=r"no bundle 'gig', .*did you mean 'gog'\?"):
        library.find("gig")


def test_the_default_is_what_was_named_last_else_the_newest(tiny_bundle: Path) -> None:
    assert library.default() is None
    put(tiny_bundle, "old", age=60)
    newest = put(tiny_bundle, "new")
    assert library.names() == ["new", "old"]
    assert library.default() == newest
    library.remember(library.find("old"))
    assert library.default() == library.directory() / "old"
    library.remember(tiny_bundle)  # one that lies elsewhere
    assert library.default() == tiny_bundle
    library.remember(tiny_bundle / "no-bundle")
    assert library.default() == tiny_bundle
    (library.directory() / ".last").write_text("/gone\n")
    assert library.default() == newest


def test_a_name_is_enough_and_is_remembered(
    play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play([ANSWER])
    put(tiny_bundle, "old", age=60)
    put(tiny_bundle, "new")
    fixed = ["ask", str(photo), "When?", "--grammar", "off"]
    assert run(fixed) == 0
    assert "bundle: new\n" in capsys.readouterr().err
    assert run([*fixed, "--bundle", "old"]) == 0
    assert "bundle:" not in capsys.readouterr().err
    assert run(fixed) == 0
    assert "bundle: old\n" in capsys.readouterr().err
    monkeypatch.setenv("GOG_EDGE_BUNDLE", "new")
    assert run(fixed) == 0  # the variable counts where it is set, and nowhere else
    assert library.default() == library.directory() / "old"


def test_where_the_library_cannot_be_written_nothing_is_remembered(
    play: Play, tiny_bundle: Path, photo: Path, private_library: Path
) -> None:
    play([ANSWER])
    private_library.write_text("a file")
    assert run(["ask", str(photo), "When?", "--grammar", "off", "--bundle", str(tiny_bundle)]) == 0


def test_remove_takes_what_is_named_and_nothing_else(
    tiny_bundle: Path, private_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tiny_bundle, "a")
    put(tiny_bundle, "b")
    library.remember(private_library / "b")
    assert run(["remove", "b"]) == 0
    assert library.names() == ["a"]
    assert library.default() == private_library / "a"
    assert sorted(p.name for p in private_library.iterdir()) == [".last", "a"]
    assert run(["remove", str(tiny_bundle)]) == 2
    assert tiny_bundle.is_dir()
    assert "can't be the name of a bundle" in capsys.readouterr().err


def test_a_damaged_bundle_is_listed_and_can_be_removed(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (put(tiny_bundle, "broken") / "vision.onnx").unlink()
    assert run(["list"]) == 0
    assert "lacks vision.onnx" in capsys.readouterr().out
    assert run(["remove", "broken"]) == 0
    assert run(["list"]) == 0
    assert "is empty: gog-edge export CHECKPOINT fills it" in " ".join(capsys.readouterr().err.split())


def test_the_list_shows_the_librarys_bundle_where_the_working_folder_has_one_of_that_name(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(tiny_bundle, "twin")
    shutil.copytree(tiny_bundle, tmp_path / "twin")
    monkeypatch.chdir(tmp_path)
    assert run(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["path"], row["default"]) == (str(folder), True)


def test_a_scenario_that_needs_a_bundle_takes_the_default(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tiny_bundle, "tiny")
    out = tmp_path / "r.json"
    assert run(["bench", "load", "--no-roofline", "--repeats", "1", "--out", str(out)]) == 0
    assert "bundle: tiny\n" in capsys.readouterr().err
    assert run(["bench", "crop", "--no-roofline", "--repeats", "1", "--out", str(out)]) == 0
    assert "bundle: tiny" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["inspect", "index", "eval", "bench", "self-check", "python"])
def test_a_name_is_taken_wherever_a_bundle_is(
    name: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tiny_bundle, "tiny")
    (tmp_path / "set.jsonl").write_text('{"id": 1, "image": "gone.jpg", "question": "q", "answers": ["a"]}\n')
    (tmp_path / "texts.jsonl").write_text('{"id": "1", "title": "t", "text": "x"}\n')
    if name == "python":
        gog_edge.load("tiny").close()
        return
    command = {
        "inspect": ["inspect", "tiny", "--json"],
        "index": ["index", "build", "i", "texts.jsonl", "--bundle", "tiny"],
        "eval": ["eval", "set.jsonl", "--bundle", "tiny"],
        "bench": ["bench", "crop", "--bundle", "tiny", "--no-roofline", "--repeats", "1"],
        "self-check": ["bench", "self-check", "--bundle", "tiny", "--tokens", "2"],
    }[name]
    assert run(command) == 0, capsys.readouterr().err


def test_an_index_named_once_is_remembered_with_its_bundle(
    tiny_bundle: Path, photo: Path, play: Play, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, lines, index = put(tiny_bundle, "one"), tmp_path / "lines.jsonl", tmp_path / "world.index"
    other = put(tiny_bundle, "two")
    lines.write_text('{"title": "Tower", "text": "The tower year is 1889."}\n')
    assert run(["index", "build", str(index), str(lines)]) == 0
    play([TEXT, ANSWER])
    words = ["ask", str(photo), "When?", "--grammar", "off"]
    assert run([*words, "--bundle", "one"]) == 0
    assert "no text search is set up" in (said := capsys.readouterr().err) and "index:" not in said
    assert run([*words, "--bundle", "one", "--index", str(index)]) == 0
    capsys.readouterr()
    assert run([*words, "--bundle", "one"]) == 0
    assert f"index: {index}" in (said := capsys.readouterr().err) and "Tower" in said
    assert run([*words, "--bundle", "one", "--no-index"]) == 0
    assert "Tower" not in capsys.readouterr().err
    assert (library.index_of(bundle), library.index_of(other)) == (index, None)
    assert run([*words, "--bundle", "one", "--index", str(index), "--no-index"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert run(["remove", "one"]) == 0
    put(tiny_bundle, "one")  # another bundle of the same name knows nothing of the index
    assert library.index_of(bundle) is None
    library.remember_index(bundle, index)
    shutil.rmtree(index)
    assert library.index_of(bundle) is None
