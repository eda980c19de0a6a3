"""The small files of a bundle: tokenizer, chat template, special tokens, dialect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gog_edge.disk.paths import expand
from gog_edge.errors import CheckpointError, DialectError, UsageError
from gog_edge.export.checkpoint.generation_settings import end_tokens
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.checkpoint.template_files import chat_template
from gog_edge.export.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer
from gog_edge.families.base import ModelConfig
from gog_edge.manifest import SpecialTokens
from gog_edge.types import BoxFrame

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
DIALECT = "dialect.toml"


def write_tokenizer(checkpoint: Checkpoint, folder: Path, *, allow_missing: bool) -> TokenizerFiles:
    """Write tokenizer.json and return what is in it.

    Raises:
        CheckpointError: there is none, or it can't be exported right.
    """
    files = read_tokenizer(checkpoint)
    if files is None:
        if allow_missing:
            return TokenizerFiles("")
        raise CheckpointError(
            f"{checkpoint.origin} has neither tokenizer.json nor vocab.json and merges.txt: "
            "copy them into the checkpoint"
        )
    (folder / TOKENIZER).write_text(files.text, "utf-8")
    return files


def write_template(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint's chat template, if it has one (without it the runtime uses plain ChatML).

    Raises:
        CheckpointError: see `template_files.chat_template`.
    """
    template = chat_template(checkpoint)
    if template is not None:
        (folder / TEMPLATE).write_text(template, "utf-8")


def write_dialect(dialect: str, folder: Path, frame: BoxFrame, named_tokens: Mapping[str, str]) -> str:
    """What the manifest says of the dialect: a shipped name, or the file that was copied. Loads it, so that a wrong
    one is found now and not at the first question. Call after `write_template`.

    Raises:
        UsageError: a file was named that is not there, or that needs other files.
        DialectError: no such dialect, or its file is wrong.
    """
    from gog_edge.dialects import load

    own = folder / TEMPLATE
    template = own.read_text("utf-8") if own.is_file() else None
    if not dialect.endswith(".toml"):
        load(dialect, frame=frame, chat_template=template, named_tokens=named_tokens)
        return dialect
    path = expand(dialect)
    if not path.is_file():
        raise UsageError(f"dialect file {dialect} does not exist")
    load(path, frame=frame, chat_template=template, named_tokens=named_tokens)
    copied = folder / DIALECT
    copied.write_bytes(path.read_bytes())
    try:
        load(copied, frame=frame, chat_template=template, named_tokens=named_tokens)
    except DialectError as e:
        raise UsageError(f"dialect file {dialect} needs files beside it; put everything into one file ({e})") from e
    return DIALECT


def special_tokens(checkpoint: Checkpoint, config: ModelConfig, tokenizer: TokenizerFiles) -> SpecialTokens:
    """Ids the session needs: config.json first, then the tokenizer's own names, which must not contradict it.

    Raises:
        CheckpointError: an id is unknown, out of the vocabulary, or differs between config and tokenizer.
    """

    vocab, added = config.decoder.spec.vocab, tokenizer.added

    def one(configured: int | None, key: str, content: str) -> int:
        known = added.get(content)
        if configured is not None and known is not None and configured != known:
            raise CheckpointError(f"config.json: {key} is {configured}, tokenizer.json says {known} ({content})")
        found = configured if configured is not None else known
        if found is None:
            raise CheckpointError(f"config.json: {key} is missing and tokenizer.json has no {content}")
        if found >= vocab:
            raise CheckpointError(f"config.json: {key} = {found} is beyond the vocabulary of {vocab}")
        return found

    return SpecialTokens(
        image_pad=one(config.image_token, "image_token_id", "<|image_pad|>"),
        vision_start=one(config.vision_start, "vision_start_token_id", "<|vision_start|>"),
        vision_end=one(config.vision_end, "vision_end_token_id", "<|vision_end|>"),
        eos=end_tokens(checkpoint, added, vocab, config.eos, tokenizer.named.get("eos_token")),
        pad=config.pad,
    )
