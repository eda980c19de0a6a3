"""A checkpoint and its adapters as transformers and peft load them: nothing here reads them by itself.

Weights are float32 where they fit into memory. Otherwise transformers maps them from the files in their stored type,
and every module gets its own widened just before it runs and loses them afterwards. Packed checkpoints (AWQ, GPTQ) are
the exception: transformers needs other libraries and a GPU for most, so the exporter's own dequantised weights are put
into transformers' model, and `Loaded.note` says so.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import safe_open

from gog_edge.allowance import available_memory
from gog_edge.errors import ParityError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint

F32 = NDArray[np.float32]
Transform = Callable[[str, F32], F32]
Give = Callable[[str], torch.Tensor]  # a weight of the HF model by name, in float32


@dataclass(frozen=True)
class Loaded:
    """`model`: the HF model, in evaluation mode; `streamed`: modules get their weights when they run."""

    model: Any
    streamed: bool
    note: str = ""


def load(checkpoint: Checkpoint, transform: Transform | None = None, memory: int | None = None) -> Loaded:
    """The model in `checkpoint.root` with the adapters in `checkpoint.adapter_roots`.

    Args:
        transform: changes every weight (adapters merged), by its name in transformers 5.
        memory: bytes that resident weights may take; default: 60 % of what is free now.

    Raises:
        ParityError: transformers or peft can't load it, or leaves out a part of it.
        UsageError: there are adapters, and peft is missing.
    """
    budget = memory if memory is not None else int(0.6 * available_memory())
    if checkpoint.quantization is not None:
        return _dequantised(checkpoint, transform, budget)
    values, widest = _stored(checkpoint.root)
    streamed = 4 * values > budget
    if streamed and any(transform is not None or not _plain(root) for root in checkpoint.adapter_roots):
        raise ParityError(f"merging the adapter takes {4 * values / 2**30:.1f} GiB, {budget / 2**30:.1f} are free")
    model = _from_pretrained(checkpoint.root, widest if streamed else torch.float32)
    for root in checkpoint.adapter_roots:
        model = _with_adapter(model, root, merge=transform is not None or root != checkpoint.adapter_roots[-1])
    model.eval()
    if streamed:
        held = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
        _stream(model, lambda name: _changed(name, held[name].float(), transform))
    elif transform is not None:
        _untie(model)
        for name, parameter in model.named_parameters():
            parameter.data = _changed(name, parameter.data, transform)
    return Loaded(model, streamed)


def _stored(root: Path) -> tuple[int, torch.dtype]:
    """(values, the widest floating type) of the safetensors files in `root`."""
    values, width = 0, 2
    for path in root.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file, not a mapping)
                part = file.get_slice(name)
                values += math.prod(part.get_shape())
                width = max(width, {"F32": 4, "F64": 8, "F16": 3}.get(part.get_dtype(), 2))
    return values, torch.bfloat16 if width == 2 else torch.float16 if width == 3 else torch.float32


def _plain(root: Path) -> bool:
    """The adapter in `root` has matrices beside the weights and nothing else, so that it need not be merged."""
    with safe_open(root / "adapter_model.safetensors", framework="pt") as file:
        return all(re.search(r"\.lora_[AB]\.", name) for name in file.keys())  # noqa: SIM118


def _from_pretrained(root: Path, dtype: torch.dtype) -> Any:
    with _one_line(f"transformers {transformers.__version__} can't load {root}"):
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            root, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    lost = sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])})
    if lost:
        raise ParityError(
            f"transformers fills {len(lost)} weights at random, such as {lost[0]}: {root} does not have them under "
            "names and in shapes that it knows"
        )
    return model


def _with_adapter(model: Any, root: Path, merge: bool) -> Any:
    try:
        import peft
    except ImportError as e:
        raise UsageError(f"--verify with an adapter needs peft ({e}): pip install 'gog-edge[parity]'") from e
    with _one_line(f"peft {peft.__version__} can't load {root}"):
        config = peft.PeftConfig.from_pretrained(str(root))
        stored = peft.load_peft_weights(str(root), device="cpu")
        renames = _old_names(model, list(stored))
        for key in ("alpha_pattern", "rank_pattern"):
            found = getattr(config, key) or {}
            setattr(config, key, {_renamed(pattern, renames): value for pattern, value in found.items()})
        for key in ("target_modules", "exclude_modules", "modules_to_save"):
            names = getattr(config, key)
            if names and renames:
                one = isinstance(names, str)
                setattr(config, key, _renamed(names, renames) if one else [_renamed(name, renames) for name in names])
        adapted = peft.PeftModel.from_pretrained(model, str(root), config=config, key_mapping=renames)
        wanted = set(peft.load_peft_weights(str(root), device="cpu", key_mapping=renames))
    left = sorted(name for name in wanted - set(peft.get_peft_model_state_dict(adapted)) if "lora_" in name)
    if left:
        raise ParityError(f"peft leaves out {len(left)} of {len(wanted)} tensors of {root}, such as {left[0]}")
    if not merge:
        return adapted.get_base_model()  # with peft's layers in it
    _untie(adapted)  # else peft adds the change of head or embedding to both
    return adapted.merge_and_unload()


def _old_names(model: Any, stored: list[str]) -> dict[str, str]:
    """transformers' own renaming of transformers 4's names, where the adapter has them; peft takes it as key_mapping.

    Empty for an adapter with today's names. peft 0.21 with transformers 5 loads nothing of an old one otherwise.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    modules = {name for name, _ in model.named_modules()}
    adapted = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in stored if ".lora_" in name}
    if adapted <= modules:
        return {}
    renames: dict[str, str] = {}
    for entry in get_model_conversion_mapping(model):
        if type(entry) is WeightRenaming and not getattr(entry, "scope_prefix", None):
            renames.update(zip(entry.source_patterns, entry.target_patterns))
    return renames


def _renamed(name: str, renames: dict[str, str]) -> str:
    for pattern, replacement in renames.items():
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return changed
    return name


def _untie(model: Any) -> None:
    """Every module gets weights of its own."""
    seen: set[int] = set()
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in seen:
                module._parameters[key] = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
            elif parameter is not None:
                seen.add(id(parameter))


def _changed(name: str, values: torch.Tensor, transform: Transform | None) -> torch.Tensor:
    if transform is None:
        return values
    return torch.from_numpy(np.ascontiguousarray(transform(name, values.numpy()), np.float32))


def _dequantised(checkpoint: Checkpoint, transform: Transform | None, budget: int) -> Loaded:
    """transformers' model of a packed checkpoint, filled with the exporter's dequantised weights."""
    if checkpoint.adapter_roots:
        raise ParityError(f"{checkpoint.origin} is packed: peft can't put an adapter on it without its own libraries")
    with _one_line(f"transformers {transformers.__version__} can't build {checkpoint.origin}"), _without_storage():
        config = transformers.AutoConfig.from_pretrained(checkpoint.root)
        del config.quantization_config
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        model = transformers.AutoModelForImageTextToText.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
    model.eval()
    head = checkpoint.head

    def give(name: str) -> torch.Tensor:
        values = checkpoint.read(head if name == "lm_head.weight" else name)
        return _changed(name, torch.from_numpy(np.ascontiguousarray(values, np.float32)), transform)

    values = sum(p.numel() for p in model.parameters())
    streamed = 4 * values > budget
    if streamed:
        _stream(model, give)
    else:
        for prefix, module in model.named_modules():
            _fill(module, prefix, list(_own(module)), give)
    return Loaded(model, streamed, f"{checkpoint.quantization} weights dequantised by this exporter")


def _stream(model: Any, give: Give) -> None:
    """Take the weights out of every module; it gets them from `give` while it runs."""
    for prefix, module in model.named_modules():
        own = list(_own(module))
        if own and ".lora_" not in prefix:
            _hook(module, prefix, own, give)


def _hook(module: torch.nn.Module, prefix: str, own: list[str], give: Give) -> None:
    empty = {
        key: torch.nn.Parameter(torch.empty(module._parameters[key].shape, device="meta"), requires_grad=False)
        for key in own
    }
    module._parameters.update(empty)

    def before(_module: Any, _inputs: Any) -> None:
        _fill(module, prefix, own, give)

    def after(_module: Any, _inputs: Any, _output: Any) -> None:
        module._parameters.update(empty)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _own(module: torch.nn.Module) -> Iterator[str]:
    return (name for name, _ in module.named_parameters(recurse=False))


def _fill(module: torch.nn.Module, prefix: str, own: list[str], give: Give) -> None:
    for key in own:
        name = f"{prefix}.{key}" if prefix else key
        values = give(name)
        if values.shape != module._parameters[key].shape:
            raise ParityError(f"{name} is {list(values.shape)}, the HF model has {list(module._parameters[key].shape)}")
        module._parameters[key] = torch.nn.Parameter(values, requires_grad=False)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """transformers' and peft's errors, of any type, as one ParityError of one line; their chatter is not shown."""
    try:
        with quiet():
            yield
    except (UsageError, ParityError):
        raise
    except Exception as e:  # their error types differ by version
        why = " ".join(str(e).split())[:300] or type(e).__name__
        raise ParityError(f"{what}: {why}") from e


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing of progress, and nothing less than an error."""
    bars, level = transformers.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def _without_storage() -> Iterator[None]:
    """Parameters made inside live on the meta device; buffers (rotary frequencies) are real."""
    register = torch.nn.Module.register_parameter

    def on_meta(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None:
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(self, name, param)

    torch.nn.Module.register_parameter = on_meta
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register
        torch.set_default_dtype(default)
