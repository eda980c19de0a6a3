"""adapter_config.json as peft reads it: which modules are adapted, with which scale, and what can't be merged."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gog_edge.errors import CheckpointError

# What starts from other base weights than the stored ones, or computes something else than W + s * B A.
_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_REFUSED = {
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "layer replication",
    "lora_bias": "biases on lora_B",
    "trainable_token_indices": "trainable token rows",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
_DEFAULT = 8  # peft's own, of r and of lora_alpha
_NOT_LINEAR = ("lm_head", "embed_tokens", "patch_embed.proj", "pos_embed")  # what "all-linear" leaves out


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter_config.json of the folder `root`.

    Module names are those that the adapter's own tensors have: peft matched its patterns against them in training.
    """

    root: Path
    data: dict[str, Any]

    @classmethod
    def read(cls, root: Path) -> AdapterConfig:
        """Read and check it.

        Raises:
            CheckpointError: no adapter, not LoRA, or a variant that can't be merged right.
        """
        path = root / "adapter_config.json"
        try:
            data = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as e:
            raise CheckpointError(f"{root} is not a PEFT adapter: it has no adapter_config.json") from e
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{path} can't be read as JSON ({e})") from e
        if not isinstance(data, dict) or str(data.get("peft_type", "")).upper() != "LORA":
            kind = data.get("peft_type") if isinstance(data, dict) else None
            raise CheckpointError(f"{root} is a {kind or 'foreign'} adapter; only LoRA (and DoRA) can be merged")
        for key, what in _REFUSED.items():
            if data.get(key):
                raise CheckpointError(f"{root} uses {what} ({key}), which can't be merged: merge it with peft first")
        init = data.get("init_lora_weights")
        if isinstance(init, str) and init.lower() not in _STARTS:
            raise CheckpointError(
                f"{root} was trained with init_lora_weights={init!r}, which changed the base weights: save it with "
                "path_initial_model_for_weight_conversion, or merge it with peft first"
            )
        config = cls(root, data)
        config._check_patterns()
        return config

    @property
    def use_dora(self) -> bool:
        return bool(self.data.get("use_dora"))

    @property
    def ensure_weight_tying(self) -> bool:
        return bool(self.data.get("ensure_weight_tying"))

    def saves(self, name: str) -> bool:
        """Whether the tensor `name` belongs to a module of modules_to_save."""
        endings = tuple(str(m) for m in self.data.get("modules_to_save") or ())
        parts = name.split(".")
        return any(".".join(parts[:count]).endswith(endings) for count in range(1, len(parts))) if endings else False

    def check_targeted(self, names: tuple[str, ...]) -> None:
        """peft loads tensors of targeted modules alone, the others it leaves out without a word.

        Args:
            names: of one module, in the adapter's spelling first.

        Raises:
            CheckpointError: the module is not targeted.
        """
        if self.data.get("target_modules") is None:
            raise CheckpointError(f"{self.root}/adapter_config.json: target_modules is missing")
        if not any(self._targets(name) for name in names):
            raise CheckpointError(
                f"{self.root} holds an adapter of {names[0]}, which its adapter_config.json does not target (peft "
                "leaves it out): mend target_modules, exclude_modules or layers_to_transform"
            )

    def scale(self, names: tuple[str, ...], rank: int) -> float:
        """What B A is multiplied with.

        Raises:
            CheckpointError: lora_alpha is not a number, or the tensors have another rank than the configuration.
        """
        alpha = self._pattern("alpha_pattern", names, "lora_alpha")
        expected = self._pattern("rank_pattern", names, "r")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise CheckpointError(f"{self.root}/adapter_config.json: lora_alpha is not a number")
        if expected != rank:
            raise CheckpointError(f"{self.root}: {names[0]} has rank {rank}, adapter_config.json says {expected}")
        return float(alpha) / (math.sqrt(rank) if self.data.get("use_rslora") else rank)

    def _pattern(self, patterns: str, names: tuple[str, ...], default: str) -> Any:
        """peft's rule: the first pattern that matches the end of the module's name decides."""
        for name in names:
            for pattern, value in (self.data.get(patterns) or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", name):
                    return value
        value = self.data.get(default)
        return _DEFAULT if value is None else value

    def _targets(self, name: str) -> bool:
        excluded, targets = self.data.get("exclude_modules"), self.data["target_modules"]
        if excluded and (re.fullmatch(excluded, name) if isinstance(excluded, str) else _listed(excluded, name)):
            return False
        if any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in self.data.get("modules_to_save") or ()):
            return False
        if isinstance(targets, str):
            if targets.lower() == "all-linear":
                return not name.endswith(_NOT_LINEAR)
            return bool(re.fullmatch(targets, name))
        return name in targets or (_listed(targets, name) and self._in_layers(name))

    def _in_layers(self, name: str) -> bool:
        layers = self.data.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.data.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            start = r".*?\." if pattern == r"[^.]*" else r"(?:^|.*?\.)"
            match = re.match(rf"{start}{pattern}\.(?P<index>\d+)\.", name)
            if match:
                return int(match["index"]) in ([layers] if isinstance(layers, int) else layers)
        return False

    def _check_patterns(self) -> None:
        """Types and regular expressions, so that matching can rely on them."""
        words: list[Any] = []
        for key, kinds in _KINDS.items():
            value: Any = self.data.get(key)
            if value is None:
                continue
            if type(value) not in kinds:
                raise CheckpointError(f"{self.root}/adapter_config.json: {key} can't be {value!r}")
            if key != "layers_to_transform":
                words += [value] if isinstance(value, str) else [*value]
        for word in words:
            try:
                re.compile(word)
            except (re.error, TypeError) as e:
                raise CheckpointError(f"{self.root}/adapter_config.json: {word!r} is no pattern of names ({e})") from e


_KINDS: dict[str, tuple[type, ...]] = {
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "modules_to_save": (list,),
    "layers_to_transform": (int, list),
    "layers_pattern": (str, list),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
}


def _listed(names: Any, name: str) -> bool:
    return name in names or any(name.endswith(f".{word}") for word in names)
