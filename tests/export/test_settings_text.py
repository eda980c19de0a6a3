"""Tokenizers and chat templates: every row against what transformers makes of the same folder, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gog_edge.agent.loader import bundle_dialect
from gog_edge.dialects.templates import ChatTemplate, Message
from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.checkpoint.template_files import chat_template
from gog_edge.export.checkpoint.tokenizer_files import read_tokenizer
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.text import CHAT_TEMPLATE
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.types import Control, ImagePart, Text

transformers = pytest.importorskip("transformers")

Tokens = list[dict[str, Any]]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
TEXTS = (
    "a <|im_end|> b <tool_call> c",
    "x<tool_call>y  <tool_call>\n\n</tool_call> e\u0301 12 it's",
    "<|im_start|>user\n \u00e9<think> HELLO<|endoftext|>",
)


class Folder:
    """A checkpoint's files but its weights, on the tiny tokenizer."""

    def __init__(self, tiny: Path, root: Path) -> None:
        root.mkdir()
        self.root = root
        for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny / name, root / name)
        self.added: Tokens = self.json("tokenizer.json")["added_tokens"]

    def json(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.root / name).read_text()))

    def write(self, name: str, value: Any) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))

    def tokenizer(self, **changes: Any) -> None:
        self.write("tokenizer.json", {**self.json("tokenizer.json"), **changes})

    def config(self, **changes: Any) -> None:
        data = {**self.json("tokenizer_config.json"), **changes}
        self.write("tokenizer_config.json", {k: v for k, v in data.items() if v is not ...})

    def flagged(self, content: str, **flags: bool) -> None:
        self.tokenizer(added_tokens=[{**t, **flags} if t["content"] == content else t for t in self.added])

    def decoder(self, **flags: dict[str, bool]) -> dict[str, Any]:
        """added_tokens_decoder, with flags changed by content."""
        entries = {str(t["id"]): {**t, **flags.get(t["content"], {})} for t in self.added}
        return {i: {k: v for k, v in t.items() if k != "id"} for i, t in entries.items()}

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.root, self.json("config.json"), None, str(self.root))  # type: ignore[arg-type]


@pytest.fixture
def folder(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Folder:
    return Folder(tiny_checkpoints["qwen3_vl"], tmp_path / "c")


STRIP = {"lstrip": True, "rstrip": True}
PADDING = {
    "strategy": {"Fixed": 9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 640,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
CALL, END = "<tool_call>", "<|im_end|>"


def _vocabulary(f: Folder) -> None:
    model = f.json("tokenizer.json")["model"]
    f.write("vocab.json", model["vocab"])
    f.write("merges.txt", "#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    (f.root / "tokenizer.json").unlink()


def _vocabulary_and_old_list(f: Folder) -> None:
    f.write("added_tokens.json", {t["content"]: t["id"] for t in f.added})
    _vocabulary(f)


def _vocabulary_and_decoder(f: Folder) -> None:
    f.config(added_tokens_decoder=f.decoder(**{CALL: STRIP}))
    _vocabulary(f)


AS_TRANSFORMERS: dict[str, Callable[[Folder], Any]] = {
    "as published": lambda f: None,
    "fast class by name": lambda f: f.config(tokenizer_class="Qwen2TokenizerFast"),
    "class left out": lambda f: f.config(tokenizer_class=...),
    "no tokenizer_config.json": lambda f: (f.root / "tokenizer_config.json").unlink(),
    "strips": lambda f: f.flagged(CALL, **STRIP),
    "strips, as it is": lambda f: (f.flagged(CALL, **STRIP), f.config(**FAST)),
    "lstrip": lambda f: f.flagged(CALL, lstrip=True),
    "rstrip": lambda f: f.flagged(CALL, rstrip=True),
    "single_word": lambda f: f.flagged(CALL, single_word=True),
    "normalized": lambda f: f.flagged(CALL, normalized=True),
    "the class forgets rules of its special tokens": lambda f: f.flagged(END, **STRIP),
    "and keeps them as it is": lambda f: (f.flagged(END, **STRIP), f.config(**FAST)),
    "decoder": lambda f: f.config(added_tokens_decoder=f.decoder()),
    "decoder strips": lambda f: f.config(added_tokens_decoder=f.decoder(**{CALL: STRIP, END: STRIP})),
    "decoder strips, as it is": lambda f: f.config(added_tokens_decoder=f.decoder(**{CALL: STRIP, END: STRIP}), **FAST),
    "decoder beats tokenizer.json": lambda f: (f.flagged(CALL, **STRIP), f.config(added_tokens_decoder=f.decoder())),
    "the same as it is": lambda f: (f.flagged(CALL, **STRIP), f.config(added_tokens_decoder=f.decoder(), **FAST)),
    "special_tokens_map.json": lambda f: f.write(
        "special_tokens_map.json",
        {"eos_token": "<|endoftext|>", "pad_token": {"content": "<|fim_pad|>", **STRIP, "normalized": False}},
    ),
    "special_tokens_map.json below a decoder": lambda f: (
        f.config(added_tokens_decoder=f.decoder()),
        f.write("special_tokens_map.json", {"eos_token": "<|endoftext|>"}),
    ),
    "more special tokens": lambda f: f.config(additional_special_tokens=[CALL, "<think>"]),
    "more special tokens in special_tokens_map.json": lambda f: (
        f.flagged(CALL, **STRIP),
        f.write("special_tokens_map.json", {"additional_special_tokens": [CALL]}),
    ),
    "extra ones there": lambda f: (
        f.flagged(CALL, **STRIP),
        f.write("special_tokens_map.json", {"extra_special_tokens": [{"content": CALL, "lstrip": True}]}),
    ),
    "extra special tokens": lambda f: (f.flagged(CALL, **STRIP), f.config(extra_special_tokens=[CALL])),
    "a Llama class on bytes": lambda f: (f.flagged(END, **STRIP), f.config(tokenizer_class="LlamaTokenizerFast")),
    "class in config.json": lambda f: (
        f.flagged(END, **STRIP),
        f.config(tokenizer_class=...),
        f.write("config.json", {**f.json("config.json"), "tokenizer_class": "PreTrainedTokenizerFast"}),
    ),
    "more special tokens, as it is": lambda f: f.config(additional_special_tokens=[CALL, "<think>"], **FAST),
    "tokens named by the model": lambda f: f.config(
        image_token="<|image_pad|>", extra_special_tokens={"boi_token": "<|vision_start|>"}
    ),
    "eos as an object": lambda f: f.config(eos_token={"__type": "AddedToken", "content": END, "lstrip": True}),
    "names of null": lambda f: f.config(eos_token=None, pad_token=None, unk_token=None),
    "no names": lambda f: f.config(eos_token=..., pad_token=..., unk_token=...),
    "no names, as it is": lambda f: f.config(eos_token=..., pad_token=..., unk_token=..., **FAST),
    "another normaliser, as it is": lambda f: (f.tokenizer(normalizer={"type": "Lowercase"}), f.config(**FAST)),
    "no normaliser, as it is": lambda f: (f.tokenizer(normalizer=None), f.config(**FAST)),
    "bos is not added": lambda f: f.config(add_bos_token=True, bos_token="<|im_start|>"),
    "padding": lambda f: f.tokenizer(padding=PADDING),
    "vocab.json and decoder": _vocabulary_and_decoder,
    "vocab.json and added_tokens.json": _vocabulary_and_old_list,
}  # fmt: skip


def made(folder: Folder) -> tuple[Tokenizer, dict[str, str]]:
    files = read_tokenizer(folder.checkpoint)
    assert files is not None
    return Tokenizer(files.text), files.named


@pytest.mark.parametrize("row", AS_TRANSFORMERS)
def test_tokens_are_those_of_transformers(row: str, folder: Folder) -> None:
    AS_TRANSFORMERS[row](folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder.root)
    ours, named = made(folder)
    for text in TEXTS:
        mine = ours.encode_control(text)
        assert mine == theirs(text, padding=False)["input_ids"]
        assert ours.decode(mine) == theirs.decode(mine, clean_up_tokenization_spaces=False)
    assert ours.special == {t.content: i for i, t in theirs.added_tokens_decoder.items()}
    assert named == theirs.special_tokens_map


def test_a_file_that_says_it_all_is_copied_as_it_is(folder: Folder) -> None:
    files = read_tokenizer(folder.checkpoint)
    assert files is not None and files.text == (folder.root / "tokenizer.json").read_text()


def _post(f: Folder) -> None:
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    one, two = ({"Sequence": {"id": c, "type_id": 0}} for c in "AB")
    tokens = {"<|im_start|>": {"id": "<|im_start|>", "ids": [641], "tokens": ["<|im_start|>"]}}
    f.tokenizer(
        post_processor={"type": "TemplateProcessing", "single": [start, one], "pair": [one, two],
                        "special_tokens": tokens}
    )  # fmt: skip


def _pre(f: Folder) -> None:
    f.tokenizer(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})


def _lost(f: Folder) -> None:
    f.config(added_tokens_decoder={k: v for k, v in f.decoder().items() if v["content"] != CALL})


REFUSED: dict[str, tuple[Callable[[Folder], Any], str]] = {
    "normaliser": (lambda f: f.tokenizer(normalizer={"type": "Lowercase"}), "normalizer of tokenizer.json is not"),
    "pre-tokenizer": (_pre, "pre_tokenizer of tokenizer.json is not"),
    "prefix space": (lambda f: f.config(add_prefix_space=True), "pre_tokenizer of tokenizer.json is not"),
    "model": (
        lambda f: f.tokenizer(model={**f.json("tokenizer.json")["model"], "ignore_merges": True}),
        "the model of",
    ),
    "class": (lambda f: f.config(tokenizer_class="GPT2Tokenizer"), "GPT2Tokenizer can't be exported"),
    "letters": (lambda f: f.config(split_special_tokens=True), "split_special_tokens"),
    "post-processor": (_post, "adds tokens to every text"),
    "token lost": (_lost, "has the token <tool_call>, added_tokens_decoder"),
    "new special token": (lambda f: f.config(additional_special_tokens=["<x>"]), "special token <x> has no id"),
    "new eos": (lambda f: f.config(eos_token="<eee>"), "special token <eee> has no id"),
    "id that is not free": (
        lambda f: f.config(added_tokens_decoder={**f.decoder(), "700": {"content": "<n>", "special": True}}),
        "token <n> should be 700",
    ),
    "object": (lambda f: f.config(eos_token={"content": END}), "eos_token must be a string"),
    "other markup": (lambda f: f.config(image_token="<image>"), "image_token is '<image>'"),
    "flag": (lambda f: f.flagged(CALL, lstrip=3), "must have content and flags"),  # type: ignore[arg-type]
    "list of ids": (lambda f: f.write("added_tokens.json", {"<n>": "x"}), "a file beside it can't be read"),
    "names of numbers": (lambda f: f.config(eos_token=3), "must have content and flags"),
    "more of nothing": (lambda f: f.config(extra_special_tokens=7), "a file beside it can't be read"),
    "no JSON": (lambda f: f.write("tokenizer.json", "{"), "can't be read"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_can_not_be_the_same_is_refused(row: str, folder: Folder) -> None:
    change, words = REFUSED[row]
    change(folder)
    with pytest.raises(CheckpointError, match=words) as error:
        read_tokenizer(folder.checkpoint)
    assert "\n" not in str(error.value)


# -- chat templates -------------------------------------------------------------------------------------------------

PROCESSOR = {"processor_class": "Qwen3VLProcessor"}
FILES: dict[str, dict[str, Any]] = {  # file -> content; the tokenizer's own template stands under "tokenizer"
    "none": {},
    "jinja": {"chat_template.jinja": "J"},
    "legacy": {"chat_template.json": {"chat_template": "L"}},
    "legacy beats jinja": {"chat_template.json": {"chat_template": "L"}, "chat_template.jinja": "J"},
    "empty legacy": {"chat_template.json": {"chat_template": ""}, "chat_template.jinja": "J"},
    "tokenizer": {"tokenizer": "T"},
    "jinja beats tokenizer": {"chat_template.jinja": "J", "tokenizer": "T"},
    "legacy beats tokenizer": {"chat_template.json": {"chat_template": "L"}, "tokenizer": "T"},
    "processor beats all": {
        "processor_config.json": {**PROCESSOR, "chat_template": "P"},
        "chat_template.json": {"chat_template": "L"},
        "chat_template.jinja": "J",
        "tokenizer": "T",
    },
    "processor's by name": {"processor_config.json": {**PROCESSOR, "chat_template": {"default": "P", "x": "Q"}}},
    "processor without": {"processor_config.json": PROCESSOR, "chat_template.jinja": "J"},
    "folder and jinja": {"additional_chat_templates/tool_use.jinja": "A", "chat_template.jinja": "J"},
    "folder's default": {"additional_chat_templates/default.jinja": "A"},
    "jinja beats the folder's default": {"additional_chat_templates/default.jinja": "A", "chat_template.jinja": "J"},
    "legacy by name": {"chat_template.json": {"chat_template": {"default": "L", "tool_use": "U"}}},
    "tokenizer by name": {"tokenizer": {"default": "T", "other": "U"}},
    "tokenizer's list": {"tokenizer": [{"name": "default", "template": "T"}, {"name": "rag", "template": "U"}]},
}
NO_CHOICE: dict[str, tuple[dict[str, Any], str]] = {
    "legacy beside the folder": (
        {"additional_chat_templates/x.jinja": "A", "chat_template.json": {"chat_template": "L"}},
        "which transformers refuses",
    ),
    "folder without default": ({"additional_chat_templates/tool_use.jinja": "A"}, "named default, only tool_use"),
    "processor without default": ({"processor_config.json": {"chat_template": {"x": "Q"}}}, "named default, only x"),
    "list in the processor": ({"processor_config.json": {"chat_template": [{"name": "default"}]}}, "not list"),
    "list in the legacy file": ({"chat_template.json": {"chat_template": [{"name": "default"}]}}, "not list"),
    "legacy without": ({"chat_template.json": {"x": "L"}}, "chat_template is missing"),
    "empty": ({"chat_template.jinja": ""}, "is empty"),
    "by whether tools are given": ({"tokenizer": {"default": "T", "tool_use": "U"}}, "default and tool_use"),
}


def put(folder: Folder, files: dict[str, Any]) -> None:
    for name, content in files.items():
        if name == "tokenizer":
            folder.config(chat_template=content)
        else:
            folder.write(name, content)


def processor(folder: Folder) -> Any:
    """transformers' processor without its video half, which needs torchvision."""

    class Still(transformers.Qwen3VLProcessor):  # type: ignore[misc, name-defined]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            """Takes None for the video processor."""

    settings, _ = Still.get_processor_dict(folder.root)
    images = transformers.AutoImageProcessor.from_pretrained(folder.root, backend="pil")
    return Still.from_args_and_dict([images, transformers.AutoTokenizer.from_pretrained(folder.root), None], settings)


@pytest.mark.parametrize("row", FILES)
def test_the_template_is_that_of_transformers(row: str, folder: Folder) -> None:
    put(folder, FILES[row])
    theirs, question = processor(folder), [{"role": "user", "content": "hi"}]
    found = chat_template(folder.checkpoint)
    if theirs.chat_template is None and theirs.tokenizer.chat_template is None:
        assert found is None
    else:
        source = theirs if theirs.chat_template is not None else theirs.tokenizer
        for tools in (None, [{"type": "function", "function": {"name": "x"}}]):
            assert found == source.apply_chat_template(question, tools=tools, tokenize=False)


@pytest.mark.parametrize("row", NO_CHOICE)
def test_no_template_is_taken_by_chance(row: str, folder: Folder) -> None:
    files, words = NO_CHOICE[row]
    put(folder, files)
    with pytest.raises(CheckpointError, match=words):
        chat_template(folder.checkpoint)


WRITING = {
    "named tokens": "{{ eos_token }}|{{ bos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }} {% endgeneration %}!{% endfor %}",
    "generation's own names": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "tojson": "{{ [1, {'b': 'é<', 'a': none}] | tojson }}{{ {'b': 1, 'a': [2]} | tojson(indent=2, sort_keys=true) }}",
    "tojson's separators": "{{ {'b': 1, 'a': [2, 3]} | tojson(separators=(',', ':'), ensure_ascii=true) }}",
    "tools are always defined": "{{ tools is defined }}{{ tools is none }}{{ documents is defined }}",
    "date": "{{ strftime_now('%Y') }}",
    "loops": "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "blocks are trimmed": "  {% if true %}\n  a\n  {% endif %}\nb",
    "namespace": "{% set n = namespace(x=1) %}{% for i in [1, 2] %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}",
    "a whole one": CHAT_TEMPLATE.replace("<|im_end|>", "' + eos_token + '"),
}


@pytest.mark.parametrize("row", WRITING)
def test_templates_write_what_transformers_writes(row: str, folder: Folder) -> None:
    folder.config(image_token="<|image_pad|>")
    folder.write("chat_template.jinja", WRITING[row])
    theirs = processor(folder)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    _, named = made(folder)
    source = chat_template(folder.checkpoint)
    assert source is not None
    ours = ChatTemplate(source, named)
    assert ours._run(messages, [], True) == wanted


def test_a_bundle_knows_the_names(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Through the manifest: what closes a turn is written by name in many published templates."""
    root = tmp_path / "c"
    shutil.copytree(tiny_checkpoints["qwen3_vl"], root)
    named = CHAT_TEMPLATE.replace("+ '<|im_end|>\\n'", "+ eos_token + '\\n'").replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|>{{ image_token }}<|vision_end|>"
    )
    assert named.count("eos_token") == 2
    (root / "chat_template.jinja").write_text(named)
    config = json.loads((root / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps({**config, "image_token": "<|image_pad|>"}))
    bundle = export_bundle(root, tmp_path / "b", ExportOptions(precision="fp32"))
    assert bundle.manifest.named_tokens["eos_token"] == END
    template, plain = bundle_dialect(bundle).template, ChatTemplate(CHAT_TEMPLATE)
    talk = [Message("user", (ImagePart(0), Text("q"))), Message("assistant", (Control("a"),))]
    assert template.render(talk) == plain.render(talk)
    assert template.frame == plain.frame
