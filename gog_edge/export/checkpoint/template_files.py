"""Which chat template a checkpoint has: the processor's, as transformers finds it, else the tokenizer's."""

from __future__ import annotations

from typing import Any

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint

JINJA, LEGACY, FOLDER = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
_PROCESSOR, _TOKENIZER = "processor_config.json", "tokenizer_config.json"


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The template that `processor.apply_chat_template` would render, else the tokenizer's; None: there is none.

    From strong to weak: processor_config.json, chat_template.json, chat_template.jinja (with the `default` of
    additional_chat_templates/ below it), tokenizer_config.json.

    Raises:
        CheckpointError: transformers could not choose, or would choose by whether tools are given.
    """
    named = {path.stem: path.read_text("utf-8") for path in sorted((checkpoint.root / FOLDER).glob("*.jinja"))}
    own = checkpoint.json(_PROCESSOR).get("chat_template")
    legacy: Any = None
    if checkpoint.file(LEGACY) is not None:
        if named:
            raise CheckpointError(f"{LEGACY} stands beside {FOLDER}/, which transformers refuses: delete one of them")
        legacy = checkpoint.json(LEGACY).get("chat_template")
        if legacy is None:
            raise CheckpointError(f"{LEGACY}: chat_template is missing")
    path = checkpoint.file(JINJA)
    if path is not None:
        named["default"] = path.read_text("utf-8")
    if own is not None:
        return _text(_default(own, _PROCESSOR), _PROCESSOR)
    if legacy:
        return _text(_default(legacy, LEGACY), LEGACY)
    if named:
        return _text(_default(named, f"{FOLDER}/"), JINJA)
    return _of_tokenizer(checkpoint.json(_TOKENIZER).get("chat_template"))


def _of_tokenizer(value: Any) -> str | None:
    """A tokenizer takes lists as well, and one named tool_use where tools are given."""
    if value is None:
        return None
    if isinstance(value, list):
        if not all(isinstance(v, dict) and {"name", "template"} <= set(v) for v in value):
            raise CheckpointError(f"{_TOKENIZER}: chat_template must be a list of objects with name and template")
        value = {v["name"]: v["template"] for v in value}
    text = _default(value, _TOKENIZER)
    if isinstance(value, dict) and value.get("tool_use", text) != text:
        raise CheckpointError(f"{_TOKENIZER}: chat_template has default and tool_use, which differ: keep one of them")
    return _text(text, _TOKENIZER)


def _default(value: Any, where: str) -> Any:
    if isinstance(value, dict) and "default" not in value:
        raise CheckpointError(f"{where}: no chat template is named default, only {', '.join(map(str, value))}")
    return value["default"] if isinstance(value, dict) else value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        what = "is empty" if value == "" or isinstance(value, str) else f"must be a string, not {type(value).__name__}"
        raise CheckpointError(f"{where}: chat_template {what}")
    return value
