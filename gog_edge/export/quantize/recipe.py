"""Which scheme each class of tensors gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from gog_edge.export.quantize.scheme import CALIBRATED, Method, Scheme
from gog_edge.families.target import TensorClass

_F32, _F16 = Scheme(32), Scheme(16)
_TURNED = 64  # inputs; larger blocks spread what a few columns hold over more groups that have scales of their own
DEFAULT_METHOD: Method = "gptq"
_GROUP = 256  # inputs with one scale at 8 bits: kGroupedBytes pays for every group in reading


@dataclass(frozen=True)
class Recipe:
    """Scheme of every tensor class. The classes:

    `embedding`: the token table (one row a token, always per row); `head`: lm_head; `attention`: q, k, v;
    `attention_out`: o, None: as `attention`; `mlp`: gate and up; `down_proj`: down; `vision`: linear layers of the
    vision blocks; `merger`: the merger and the DeepStack mergers. Patch embedding, norms, biases and the position table
    are always float.
    """

    name: str
    embedding: Scheme
    head: Scheme
    attention: Scheme
    mlp: Scheme
    down_proj: Scheme
    vision: Scheme
    merger: Scheme
    overrides: dict[str, Scheme] = field(default_factory=dict)  # exact weight name -> scheme
    attention_out: Scheme | None = None

    def scheme(self, tensor_class: TensorClass, name: str = "") -> Scheme:
        """The scheme of one tensor: its override, or its class's."""
        found: Scheme = self.overrides.get(name) or getattr(self, tensor_class) or self.attention
        return found

    def with_method(self, method: Method) -> Recipe:
        """The same recipe with another method for the decoder (where there is calibration data)."""
        return replace(
            self,
            name=self.name if method == DEFAULT_METHOD else f"{self.name.partition('-')[0]}-{method}",
            head=replace(self.head, method=method),
            attention=replace(self.attention, method=method),
            attention_out=replace(self.scheme("attention_out"), method=method),
            mlp=replace(self.mlp, method=method),
            down_proj=replace(self.down_proj, method=method),
        )

    def at_int8(self, classes: Sequence[TensorClass]) -> Recipe:
        """The same recipe with these classes as the int8 recipe has them."""
        if not classes:
            return self
        eight = Recipe.for_precision("int8")
        changed: dict[str, Any] = {name: getattr(eight, name) for name in classes}
        changed |= {"attention_out": eight.attention} if "attention" in classes else {}
        return replace(self, name="-".join((self.name, *(f"{name}8" for name in classes))), **changed)

    @property
    def repeatable(self) -> bool:
        """Whether weights alone decide, so that the same recipe gives the same result again (no calibration)."""
        schemes = [getattr(self, f.name) for f in fields(self) if f.name not in ("name", "overrides", "attention_out")]
        schemes.append(self.scheme("attention_out"))
        return all(s.is_float or s.method not in CALIBRATED for s in (*schemes, *self.overrides.values()))

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    @classmethod
    def for_precision(cls, precision: str, method: Method = DEFAULT_METHOD) -> Recipe:
        """The default recipe of fp32, fp16, int8, int5 or int4 (the figures behind it: docs/quantization.md).

        `method`: of every integer scheme; "gptq" for the decoder only, the others are searched.

        Raises:
            ValueError: another precision.
        """
        if precision == "fp32":
            return cls("fp32", _F32, _F32, _F32, _F32, _F32, _F32, _F32)
        if precision == "fp16":
            return cls("fp16", _F16, _F16, _F16, _F16, _F16, _F16, _F16)
        everywhere: Method = "mse" if method in CALIBRATED else method
        row = Scheme(8, method=everywhere)
        int8 = Scheme(8, _GROUP, method=everywhere, even=True, rotation=_TURNED)
        tower = replace(int8, block=0)  # groups bring it nothing (docs/quantization.md)
        if precision == "int8":
            recipe = cls("int8", row, int8, int8, int8, int8, tower, tower)
        elif precision == "int4":
            int4 = Scheme(4, 32, method=everywhere, rotation=_TURNED)
            recipe = cls("int4", row, int8, int8, int4, int4, tower, tower, attention_out=int4)
        elif precision == "int5":
            int5 = Scheme(5, 32, method=everywhere, rotation=_TURNED)
            recipe = cls("int5", row, int8, int5, int5, int5, tower, tower)
        else:
            raise ValueError(f"unknown precision {precision!r}: fp32, fp16, int8, int5 or int4")
        return recipe.with_method(method) if method in CALIBRATED else recipe

    @classmethod
    def requantising(cls, precision: str) -> Recipe:
        """The recipe for checkpoints that were quantised before (AWQ, GPTQ): int4 keeps the steps they lie on.

        Raises:
            ValueError: another precision.
        """
        if precision != "int4":
            return cls.for_precision(precision)
        recipe = cls.for_precision(precision, "mse")
        steps = replace(recipe.mlp, symmetric=False, method="grid", rotation=0)
        return replace(recipe, name="int4-grid", attention=steps, attention_out=steps, mlp=steps, down_proj=steps)
