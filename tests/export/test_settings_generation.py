"""How tokens are chosen: what transformers' `generate` does with the same folder, and what stands above it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge import dialects
from gog_edge.agent.agent import chosen_sampling
from gog_edge.agent.loader import bundle_dialect
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import CheckpointError, DialectError
from gog_edge.export.checkpoint.generation_settings import end_tokens, read_generation
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.image.frame import Frame
from gog_edge.runtime.constraint import TokenGrammar, available
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

END, OTHER = 642, 640  # <|im_end|>, <|endoftext|> of the tiny checkpoints
PENALTY = {"repetition_penalty": 1.3, "eos_token_id": 642}


def varied(source: Path, root: Path, generation: dict[str, Any] | None, **config: Any) -> Path:
    """A copy of the checkpoint with another generation_config.json (None: without) and changed root keys."""
    root.mkdir()
    for file in source.iterdir():
        if file.name != "generation_config.json":
            shutil.copy(file, root / file.name)
    if generation is not None:
        (root / "generation_config.json").write_text(json.dumps(generation))
    data = json.loads((root / "config.json").read_text())
    text = config.pop("text_config", {})
    if text:
        data["text_config"].update(text)
    (root / "config.json").write_text(json.dumps({**data, **config}))
    return root


ROWS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "as published": ({"do_sample": False, "eos_token_id": [END, OTHER]}, {}),
    "one end": ({"eos_token_id": OTHER}, {}),
    "penalty without do_sample": ({"repetition_penalty": 1.05, "temperature": 0.7, "top_k": 5}, {"eos_token_id": 1}),
    "Qwen2.5-VL": ({"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "eos_token_id": [END]}, {}),
    "Qwen3-VL": ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": [END]}, {}),
    "do_sample alone": ({"do_sample": True, "min_p": 0.05, "eos_token_id": [END]}, {}),
    "nulls": ({"do_sample": True, "temperature": None, "top_k": None, "top_p": None, "eos_token_id": [END]}, {}),
    "the file counts as a whole": ({"eos_token_id": [END]}, {"do_sample": True, "temperature": 0.5}),
    "no file, root": (None, {"eos_token_id": [7, END], "do_sample": True, "temperature": 0.5}),
    "no file, text_config": (None, {"text_config": {"eos_token_id": 7, "repetition_penalty": 1.2}}),
    "no file, root before text_config": (None, {"eos_token_id": 5, "text_config": {"eos_token_id": 7}}),
}


@pytest.mark.parametrize("row", ROWS)
def test_settings_are_those_of_generate(row: str, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    generation, config = ROWS[row]
    root = varied(tiny_checkpoints["qwen3_vl"], tmp_path / "c", generation, **config)
    model = transformers.AutoModelForImageTextToText.from_pretrained(root)
    theirs, _ = model._prepare_generation_config(None)

    kept = read_generation(Checkpoint.open(root))
    ours = Sampling.of_checkpoint(kept)
    assert (ours.repetition_penalty or 1.0) == theirs.repetition_penalty
    if theirs.do_sample:
        got = (ours.temperature, ours.top_k, ours.top_p or 1.0, ours.min_p)
        assert got == (theirs.temperature, theirs.top_k, theirs.top_p, theirs.min_p)
    assert ours.greedy == (not theirs.do_sample or theirs.temperature < 1e-5)

    added = {"<|im_end|>": END, "<|endoftext|>": OTHER}
    eos = end_tokens(Checkpoint.open(root), added, 704, (1,), "<|endoftext|>")
    their_eos = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    if their_eos == [None]:  # generate would not stop: config.json's, since there must be an end
        their_eos = [1]
    assert set(eos) == {*their_eos, END}


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"num_beams": 4}, "num_beams is 4"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3"),
        ({"suppress_tokens": [5]}, "suppress_tokens"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p"),
        ({"do_sample": True, "temperature": 0.0}, "set do_sample to false"),
        ({"do_sample": "yes"}, "true or false"),
        ({"temperature": "hot"}, "must be a number"),
        ({"repetition_penalty": -1}, "repetition_penalty is -1"),
        ({"do_sample": True, "top_p": 3}, "top_p is 3"),
    ],
)
def test_what_is_not_done_is_refused(
    generation: dict[str, Any], words: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    root = varied(tiny_checkpoints["qwen3_vl"], tmp_path / "c", generation)
    with pytest.raises(CheckpointError, match=words) as error:
        read_generation(Checkpoint.open(root))
    assert "generation_config.json" in str(error.value) and "\n" not in str(error.value)


def test_neutral_values_are_not_refused(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    generation = {"num_beams": 1, "min_length": 0, "typical_p": 0.5, "bad_words_ids": None, "guidance_scale": 1.0}
    root = varied(tiny_checkpoints["qwen3_vl"], tmp_path / "c", generation)
    assert read_generation(Checkpoint.open(root)) == {}


def test_the_tokenizers_end_serves_where_nothing_names_one(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    root = varied(tiny_checkpoints["qwen3_vl"], tmp_path / "c", {})
    checkpoint = Checkpoint.open(root)
    assert end_tokens(checkpoint, {"</s>": 9}, 704, (), "</s>") == (9,)
    with pytest.raises(CheckpointError, match="no end-of-turn token"):
        end_tokens(checkpoint, {}, 704, (), None)


def test_the_user_is_above_the_dialect_is_above_the_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    manifest.generation.clear()
    assert chosen_sampling(Sampling(), dialects.load("gog"), manifest).greedy
    manifest.generation.update(do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.05)
    plain = chosen_sampling(Sampling(), dialects.load("gog"), manifest)
    assert plain.describe() == "temperature 0.7, top-k 50, top-p 0.8, repetition penalty 1.05"
    path = tmp_path / "own.toml"
    path.write_text('extends = "gog"\n[sampling]\ntemperature = 0.2\nrepetition_penalty = 1\n')
    own = dialects.load(path)
    assert chosen_sampling(Sampling(), own, manifest).describe() == "temperature 0.2, top-k 50, top-p 0.8"
    said = chosen_sampling(Sampling(temperature=0, repetition_penalty=1.2, seed=3), own, manifest)
    assert said.describe() == "greedy, repetition penalty 1.2" and said.seed == 3
    path.write_text('extends = "gog"\n[sampling]\ntop_p = 3.0\n')
    with pytest.raises(DialectError, match=r"sampling.top_p is 3"):
        dialects.load(path)


def test_filters_are_those_of_transformers() -> None:
    """The set that may be drawn, over random settings: temperature, then top-k, top-p, min-p."""
    from transformers.generation import logits_process as process

    rng = np.random.default_rng(0)
    for _ in range(60):
        logits = np.round(rng.normal(size=40) * 3, 1).astype(np.float32)  # with ties
        t, k, p, m = rng.uniform(0.3, 2), int(rng.integers(1, 20)), rng.uniform(0.3, 1), rng.uniform(0, 0.4)
        scores = torch.tensor(logits[None])
        for step in (
            process.TemperatureLogitsWarper(float(t)),
            process.TopKLogitsWarper(k),
            process.TopPLogitsWarper(float(p)),
            process.MinPLogitsWarper(float(m)),
        ):
            scores = step(None, scores)
        allowed = set(np.flatnonzero(np.isfinite(scores[0].numpy())).tolist())
        sampler = Sampler(Sampling(temperature=float(t), top_k=k, top_p=float(p), min_p=float(m)))
        drawn = {sampler.choose(logits) for _ in range(400)}
        assert drawn <= allowed or sampler.options.greedy
        if len(allowed) < 4 and not sampler.options.greedy:
            assert drawn == allowed


LARK = 'start: /[a-z ]{0,30}/ "!" /[a-z ]{0,30}/'


@pytest.fixture(scope="module")
def penalised(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("penalised")
    root = varied(tiny_checkpoints["qwen3_vl"], folder / "c", PENALTY)
    return root, export_bundle(root, folder / "b", ExportOptions(precision="fp32"))


def opened(bundle: Bundle) -> Session:
    """A session with an image and a question in it."""
    engine = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False))
    session = Session(Model.assemble(bundle, engine, RunOptions(prefix_cache=False)))
    pixels = np.random.default_rng(5).integers(0, 256, (96, 160, 3), np.uint8)
    session.add_image(Frame(pixels, "noise"))
    words = "<|im_end|>\n<|im_start|>assistant\n"
    session.append([Control("<|im_start|>user\n"), ImagePart(0), Control("what is the image of the tool?" + words)])
    return session


def write(session: Session, sampling: Sampling, guesses: int, lark: str = "", count: int = 40) -> list[int]:
    bundle = session.model.bundle
    constraint = None
    if lark:
        grammar = TokenGrammar(
            session.model.tokenizer.backend, bundle.manifest.tokens.eos, bundle.manifest.decoder.vocab
        )
        constraint = grammar.constraint(lark)
    writer = TurnWriter(session, Sampler(sampling), Speculation(guesses, adaptive=False, ngram_min=1))
    result = TurnResult()
    list(writer.turn(TurnOptions(count, bundle.manifest.tokens.eos), constraint, result))
    return result.ids


@pytest.mark.parametrize("guesses", [0, 8])
def test_forty_tokens_as_generate_writes_them(penalised: tuple[Path, Bundle], guesses: int) -> None:
    root, bundle = penalised
    session = opened(bundle)
    prompt, image = session.tokens.tolist(), session.image(0)
    assert image.plan is not None
    pre = bundle.manifest.preprocessing
    processor = transformers.AutoImageProcessor.from_pretrained(root, backend="pil")
    from PIL import Image

    pixels = processor([Image.fromarray(image.plan.frame.pixels)], return_tensors="pt")
    assert pixels["image_grid_thw"].tolist() == [[1, image.plan.grid.rows, image.plan.grid.columns]]
    ids = torch.tensor([prompt])
    inputs = {**pixels, "mm_token_type_ids": (ids == bundle.manifest.tokens.image_pad).int()}
    model = transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, max_new_tokens=40)
    theirs = [t for t in theirs[0, len(prompt) :].tolist() if t not in bundle.manifest.tokens.eos]
    chosen = chosen_sampling(Sampling(), bundle_dialect(bundle), bundle.manifest)
    assert pre.merge_size == 2 and chosen.repetition_penalty == 1.3
    assert write(session, chosen, guesses) == theirs
    assert len(theirs) == 40
    # else the test would say nothing
    assert write(opened(bundle), Sampling(), guesses) != theirs


@pytest.mark.skipif(not available(), reason="needs llguidance")
def test_the_penalty_holds_under_a_grammar(penalised: tuple[Path, Bundle]) -> None:
    _, bundle = penalised
    chosen = chosen_sampling(Sampling(), bundle_dialect(bundle), bundle.manifest)
    plain, guessed = (write(opened(bundle), chosen, guesses, LARK) for guesses in (0, 8))
    assert plain == guessed and plain != write(opened(bundle), Sampling(), 0, LARK)


def test_tokens_that_were_taken_back_are_not_penalised() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), [1])
    sampler.saw([2])
    sampler.restart([1])
    assert sampler.choose(np.array([0.0, 0.0, 3.0], np.float32)) == 2
    assert sampler._penalise(np.array([0.0, 1.0, 3.0], np.float32)).tolist() == [0.0, 0.5, 3.0]


def test_questions_are_asked_so(
    penalised: tuple[Path, Bundle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the bundle through the command line to the sampler; `inspect` says it beforehand."""
    from gog_edge.cli.main import run
    from gog_edge.runtime.remote import start

    used: list[Sampling] = []

    class Spy(Sampler):
        def __init__(self, options: Sampling) -> None:
            used.append(options)
            super().__init__(options)

    monkeypatch.setattr(start, "Sampler", Spy)
    _, bundle = penalised
    assert run(["inspect", str(bundle.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sampling"].startswith("greedy, repetition penalty 1.3; options such")
    photo = bundle.root.parent / "photo.png"
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(photo)
    ask = ["ask", str(photo), "what?", "--bundle", str(bundle.root), "--quiet", "--max-turns", "1", "--grammar", "off"]
    for options in ([], ["--temperature", "0.5", "--top-k", "3"], ["--repetition-penalty", "1", "--seed", "4"]):
        assert run([*ask, *options]) in (0, 1)
    assert [u.describe() for u in used] == [
        "greedy, repetition penalty 1.3",
        "temperature 0.5, top-k 3, repetition penalty 1.3",
        "greedy",
    ]
    assert used[2].seed == 4


def test_old_bundles_load_as_they_were(tiny_bundle: Path, tmp_path: Path) -> None:
    """Manifests without the newer keys."""
    shutil.copytree(tiny_bundle, tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    data = json.loads(path.read_text())
    for key in ("named_tokens", "generation", "seal"):
        del data[key]
    for key in ("min_pixels", "max_pixels"):
        del data["provenance"][key]
    path.write_text(json.dumps(data))
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.named_tokens == {}
    assert chosen_sampling(Sampling(), dialects.load("gog"), manifest).describe() == "greedy"
