"""tokenizer.json of a checkpoint as transformers makes it of its files, with the tokens that have a name.

transformers 5 rebuilds a Qwen2Tokenizer from the vocabulary, with its own normaliser and pre-tokenizer and the
added tokens of tokenizer_config.json; other classes take tokenizer.json as it is. Where both ways would give other
ids, the export is refused: which one a policy was trained with can't be told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Qwen2's pre-tokenizer (Qwen2Tokenizer's PRETOKENIZE_REGEX): words, single digits, punctuation, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = "Qwen2Tokenizer"
_AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")
_MARKUP = {
    "image_token": "<|image_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


@dataclass(frozen=True)
class AddedToken:
    """A token that is found before the vocabulary is asked; the names are those of tokenizer.json."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    @classmethod
    def read(cls, data: Any, where: str) -> AddedToken:
        """An entry of one of the files.

        Raises:
            CheckpointError: it is not one.
        """
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__} if isinstance(data, Mapping) else {}
        flags = {k: v for k, v in known.items() if k != "content"}
        if not isinstance(known.get("content"), str) or not all(isinstance(v, bool) for v in flags.values()):
            raise CheckpointError(f"{where}: an added token must have content and flags, not {data!r}")
        # the library's own default: what is special is found in the text as it is written
        return cls(**{"normalized": not flags.get("special", False), **known})


@dataclass(frozen=True)
class TokenizerFiles:
    """`text`: of tokenizer.json. `added`: content -> id. `named`: "eos_token" -> "<|im_end|>", as templates know it."""

    text: str
    added: dict[str, int] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerFiles | None:
    """What transformers would make; None when the checkpoint has no tokenizer at all.

    Raises:
        CheckpointError: a file is malformed, or transformers would make something else of the files than what is in
            tokenizer.json.
    """
    try:
        return _read(checkpoint)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{checkpoint.origin}: {FILE} or a file beside it can't be read ({e})") from e


def _read(checkpoint: Checkpoint) -> TokenizerFiles | None:
    config = checkpoint.json(CONFIG)
    rebuilt, path = _is_rebuilt(checkpoint, config), checkpoint.file(FILE)
    text = path.read_text("utf-8") if path is not None else _from_vocabulary(checkpoint, config, rebuilt)
    if text is None:
        return None
    data = json.loads(text)
    stored = {int(t["id"]): AddedToken.read(t, FILE) for t in data.get("added_tokens") or []}
    vocab = data["model"]["vocab"]
    pieces: dict[str, int] = {p[0]: i for i, p in enumerate(vocab)} if isinstance(vocab, list) else vocab
    _check_whole(checkpoint, data, config, rebuilt)
    named, extra = _named(checkpoint, config, data, rebuilt)
    tokens = _effective(checkpoint, config, stored, named, extra, rebuilt)
    ids = _ids(checkpoint, config, tokens, stored, pieces)
    final = {ids[t.content]: t for t in tokens.values()}
    if final != stored:
        entries = [{"id": i, **vars(t)} for i, t in sorted(final.items())]
        text = json.dumps({**data, "added_tokens": entries}, ensure_ascii=False)
    _check_ids(checkpoint, text, ids)
    return TokenizerFiles(text, ids, {name: value.content for name, value in named.items()})


def _is_rebuilt(checkpoint: Checkpoint, config: Mapping[str, Any]) -> bool:
    """Whether transformers puts its own parts in the place of tokenizer.json's."""
    name = str(config.get("tokenizer_class") or checkpoint.config.get("tokenizer_class") or _QWEN).removesuffix("Fast")
    if name == "LlamaTokenizer":  # of distilled models; transformers looks into the file
        path = checkpoint.file(FILE)
        name = _AS_IT_IS[0] if path is not None and '"ByteLevel"' in path.read_text("utf-8") else name
    if name != _QWEN and name not in _AS_IT_IS:
        raise CheckpointError(
            f"{CONFIG}: tokenizer_class {name} can't be exported; if {FILE} is right, PreTrainedTokenizerFast can"
        )
    return name == _QWEN


def _check_whole(checkpoint: Checkpoint, data: Mapping[str, Any], config: Mapping[str, Any], rebuilt: bool) -> None:
    """Refuse what would give other ids than transformers."""
    if config.get("split_special_tokens"):
        raise CheckpointError(f"{CONFIG}: split_special_tokens makes letters of control tokens; set it to false")
    post = data.get("post_processor") or {}
    parts = post.get("processors", []) if post.get("type") == "Sequence" else [post]
    for part in parts:
        if part.get("type") not in (None, "ByteLevel") and not _keeps(part):
            raise CheckpointError(f"{FILE}: its post_processor ({part['type']}) adds tokens to every text; remove it")
    if not rebuilt:
        return
    model = data["model"]
    split, level = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}, "ByteLevel"
    byte_level = {"type": level, "add_prefix_space": bool(config.get("add_prefix_space")), "use_regex": False}
    wanted = {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": level,
        "model": ("BPE", False, False, False, "", ""),
    }
    flags = (bool(model.get(k)) for k in ("dropout", "byte_fallback", "ignore_merges"))
    affixes = (model.get(k) or "" for k in ("continuing_subword_prefix", "end_of_word_suffix"))
    found = {
        "normalizer": data.get("normalizer"),
        "pre_tokenizer": _without_trim(data.get("pre_tokenizer")),
        "decoder": (data.get("decoder") or {}).get("type"),
        "model": (model.get("type", "BPE"), *flags, *affixes),
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise CheckpointError(
                f"{checkpoint.origin}: the {name} of {FILE} is not {_QWEN}'s, which transformers 5 puts in its place "
                f"and 4 does not: if the file is right, set tokenizer_class to PreTrainedTokenizerFast in {CONFIG}"
            )


def _keeps(part: Mapping[str, Any]) -> bool:
    """Whether a post-processor leaves single texts as they are."""
    return part["type"] == "TemplateProcessing" and not any("SpecialToken" in p for p in part.get("single") or [])


def _without_trim(value: Any) -> Any:
    """Without the key that changes offsets and never ids."""
    if isinstance(value, Mapping):
        return {k: _without_trim(v) for k, v in value.items() if k != "trim_offsets"}
    return [_without_trim(v) for v in value] if isinstance(value, list) else value


def _named(
    checkpoint: Checkpoint, config: Mapping[str, Any], data: Mapping[str, Any], rebuilt: bool
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """(tokens with a name, further special tokens): tokenizer_config.json, the class's defaults below it.

    special_tokens_map.json overrides it where it does not list its added tokens.
    """
    values: dict[str, Any] = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>") if rebuilt else {}
    if not rebuilt and data.get("padding"):
        values["pad_token"] = data["padding"]["pad_token"]
    own = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, (str, Mapping))}
    values |= own | {k: config[k] for k in NAMES if k in config}
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    where = CONFIG
    if "added_tokens_decoder" not in config:
        old = checkpoint.json("special_tokens_map.json")
        values |= {k: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for k, v in old.items() if k in NAMES}
        where = f"{CONFIG} or special_tokens_map.json"
        further = [*(old.get("extra_special_tokens") or []), *(old.get("additional_special_tokens") or [])]
    else:
        further = []
    if isinstance(more, Mapping):
        values |= more
        more = []
    named: dict[str, AddedToken] = {}
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and "__type" not in value:
            raise CheckpointError(f"{CONFIG}: {name} must be a string: transformers takes no object without __type")
        named[name] = _special(value, f"{where}: {name}")
        wanted = _MARKUP.get(name)
        if wanted is not None and named[name].content != wanted:
            raise CheckpointError(f"{where}: {name} is {named[name].content!r}; only {wanted} can be exported")
    return named, [_special(v, where) for v in (*more, *further)]


def _special(value: Any, where: str) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    return AddedToken.read({**value, "special": True} if isinstance(value, Mapping) else value, where)


def _effective(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    stored: Mapping[int, AddedToken],
    named: Mapping[str, AddedToken],
    extra: list[AddedToken],
    rebuilt: bool,
) -> dict[str, AddedToken]:
    """The added tokens by content, with the flags that they end up with; the last of equal ones counts."""
    declared = _declared(checkpoint, config, stored, named)
    tokens = {} if rebuilt else {t.content: t for t in stored.values()}
    tokens |= {t.content: t for _, t in sorted(declared.items())}
    for token in (*named.values(), *extra):
        tokens.setdefault(token.content, token)
    if rebuilt:  # the class adds its special tokens once more, by their spelling alone
        tokens |= {t.content: AddedToken(t.content, normalized=False, special=True) for t in (*named.values(), *extra)}
    lost = [t.content for t in stored.values() if t.content not in tokens]
    if lost:
        raise CheckpointError(
            f"{checkpoint.origin}: {FILE} has the token {lost[0]}, added_tokens_decoder of {CONFIG} does not, so that "
            "transformers 5 reads it as text and 4 as a token: make the files agree"
        )
    return tokens


def _declared(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    stored: Mapping[int, AddedToken],
    named: Mapping[str, AddedToken],
) -> dict[int, AddedToken]:
    """id -> token: tokenizer_config.json's list as a whole, else added_tokens.json with tokenizer.json above it."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, Mapping) or not all(str(key).isdecimal() for key in decoder):
            raise CheckpointError(f"{CONFIG}: added_tokens_decoder must be an object from ids to tokens")
        return {int(key): AddedToken.read(token, CONFIG) for key, token in decoder.items()}
    special = {token.content for token in named.values()}
    old = checkpoint.json("added_tokens.json")
    found = {int(i): AddedToken(c, normalized=c not in special, special=c in special) for c, i in old.items()}
    return {**found, **stored}


def _ids(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    tokens: Mapping[str, AddedToken],
    stored: Mapping[int, AddedToken],
    vocab: Mapping[str, int],
) -> dict[str, int]:
    """content -> id. One that no file gives an id would get the next free one, for which no weight was trained."""
    given = {**vocab, **{str(c): int(i) for c, i in checkpoint.json("added_tokens.json").items()}}
    given |= {t.content: i for i, t in stored.items()}
    given |= {t["content"]: int(i) for i, t in (config.get("added_tokens_decoder") or {}).items()}
    missing = [c for c in tokens if c not in given]
    if missing:
        raise CheckpointError(
            f"{checkpoint.origin}: the special token {missing[0]} has no id in {FILE} or {CONFIG}: add it there"
        )
    return {content: given[content] for content in tokens}


def _check_ids(checkpoint: Checkpoint, text: str, ids: Mapping[str, int]) -> None:
    """The library must give the tokens the ids that the files say.

    Raises:
        CheckpointError: it does not, or it can't read the text.
    """
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the library raises bare Exception
        raise CheckpointError(f"{checkpoint.origin}: {FILE} can't be read ({e})") from e
    for content, number in ids.items():
        got = made.token_to_id(content)
        if got != number:
            raise CheckpointError(
                f"{checkpoint.origin}: token {content} should be {number}, the tokenizer makes it {got}: "
                "the files do not belong together"
            )


def _from_vocabulary(checkpoint: Checkpoint, config: Mapping[str, Any], rebuilt: bool) -> str | None:
    """tokenizer.json made from vocab.json and merges.txt (older Qwen checkpoints), without added tokens."""
    vocab, merges = checkpoint.file("vocab.json"), checkpoint.file("merges.txt")
    if vocab is None or merges is None:
        return None
    if not rebuilt or config.get("add_bos_token") or config.get("add_eos_token"):
        raise CheckpointError(f"{checkpoint.origin} has no {FILE}: only a plain {_QWEN} can be made without it")
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as e:
        raise CheckpointError(f"{checkpoint.origin}: vocab.json and merges.txt can't be read ({e})") from e
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())
