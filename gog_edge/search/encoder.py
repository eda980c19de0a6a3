"""A given ONNX image encoder (MobileNet, CLIP's image tower, DINO, …) as the embedder of an index.

How pictures are prepared is given in a small JSON file next to the model (`encoder.onnx` -> `encoder.json`), in
options, or is read off the graph: {"size": 224, "mean": [..3], "std": [..3], "layout": "nchw", "fit": "stretch",
"pool": "mean", "output": "name"}. Every value joins the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import usable_threads
from gog_edge.errors import EngineError, UsageError
from gog_edge.search.local.record import file_hash
from gog_edge.types import Region

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame

FITS = ("stretch", "crop", "pad")
LAYOUTS = ("", "nchw", "nhwc")
POOLS = ("", "mean", "cls", "none")


@dataclass(frozen=True)
class EncoderOptions:
    """Preparation of a picture for an encoder; empty and zero mean: as the graph says.

    Args:
        size: (height, width) in pixels.
        mean, std: per channel, of values 0..1: x = (v / 255 - mean) / std.
        layout: "nchw" or "nhwc".
        fit: "stretch" to the size, "crop" the largest centred part of its aspect, "pad" with grey to its aspect.
        pool: of [1, n, d] or [1, d, h, w] outputs: "mean" or (the first token) "cls"; "none" flattens.
        output: name of the output; the first by default.
    """

    size: tuple[int, int] = (0, 0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    layout: str = ""
    fit: str = "stretch"
    pool: str = ""
    output: str = ""

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> EncoderOptions:
        """Options from JSON.

        Raises:
            UsageError: an unknown or wrong value; names it.
        """
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"{where}: unknown option {name!r}; known: {', '.join(sorted(known))}")
        options = dict(values)
        if isinstance(options.get("size"), int):
            options["size"] = (options["size"], options["size"])
        for name, count in (("size", 2), ("mean", 3), ("std", 3)):
            if name in options:
                value = options[name]
                if not isinstance(value, (list, tuple)) or len(value) != count or not all(map(_finite, value)):
                    raise UsageError(f"{where}: {name} needs {count} numbers")
                options[name] = tuple(int(v) if name == "size" else float(v) for v in value)
        for name, allowed in (("layout", LAYOUTS), ("fit", FITS), ("pool", POOLS)):
            if options.get(name, allowed[0]) not in allowed:
                raise UsageError(f"{where}: {name} is one of {', '.join(a for a in allowed if a)}")
        if not isinstance(options.get("output", ""), str):
            raise UsageError(f"{where}: output is the name of a graph output")
        result = cls(**options)
        if min(result.size) < 0 or max(result.size) > 4096 or 0.0 in result.std:
            raise UsageError(f"{where}: size must lie in 1..4096, and std must not be 0")
        return result


class OnnxEncoder:
    """An ONNX image encoder. Thread-safe; one run at a time.

    Args:
        model: the .onnx file.
        options: preparation; by default `MODEL.json` beside it where that exists.
        threads: of the session; 0: as many as this process may use.

    Raises:
        EngineError: the file is missing or not loadable, or its input is not an image.
        UsageError: options do not fit the graph.
    """

    def __init__(self, model: str | Path, options: EncoderOptions | None = None, *, threads: int = 0) -> None:
        import onnxruntime

        path = Path(model)
        if not path.is_file():
            raise EngineError(f"{path}: no such encoder file")
        options = _beside(path) if options is None else options
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or usable_threads()
        settings.log_severity_level = 3
        # One picture at a time beside other work: spinning threads would only take cores away.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as e:
            raise EngineError(f"{path}: ONNX Runtime can't load the encoder ({' '.join(str(e).split())[:300]})") from e
        self.path = path
        self._input = self._check_input()
        self.options = self._complete(options)
        self._lock = threading.Lock()
        self.fingerprint = self._fingerprint()

    def embed(self, frame: Frame, region: Region | None = None) -> NDArray[np.float32]:
        """[d] float32 of unit length.

        Raises:
            RegionError: nothing of the region lies inside the frame.
            EngineError: the graph failed or gave no usable vector.
        """
        box = (region or frame.region).clamp(frame.width, frame.height)
        tensor = self._prepare(frame, box)
        try:
            with self._lock:
                output = self._session.run([self.options.output], {self._input.name: tensor})[0]
        except Exception as e:
            raise EngineError(f"{self.path}: the encoder failed ({' '.join(str(e).split())[:300]})") from e
        vector = self._pool(np.asarray(output, np.float32))
        norm = float(np.linalg.norm(vector))
        if not math.isfinite(norm) or norm == 0.0:
            raise EngineError(f"{self.path}: the encoder gave a vector of length {norm}")
        return vector / np.float32(norm)

    def _prepare(self, frame: Frame, box: Region) -> NDArray[Any]:
        from PIL import Image

        height, width = self.options.size
        image = Image.fromarray(frame.pixels)
        x0, y0, x1, y1 = box.as_tuple()
        aspect = width / height
        if self.options.fit == "crop":
            w, h = min(box.width, box.height * aspect), min(box.height, box.width / aspect)
            x0, y0 = x0 + (box.width - w) / 2, y0 + (box.height - h) / 2
            x1, y1 = x0 + w, y0 + h
        to = (width, height)
        if self.options.fit == "pad":
            scale = min(width / box.width, height / box.height)
            to = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
        # Cut first: Pillow's filter reaches over the border of `box`, into what was not meant.
        left, top = math.floor(x0), math.floor(y0)
        cut = image.crop((left, top, math.ceil(x1), math.ceil(y1)))
        resized = cut.resize(to, Image.Resampling.BICUBIC, box=(x0 - left, y0 - top, x1 - left, y1 - top))
        if to != (width, height):
            canvas = Image.new("RGB", (width, height), (128, 128, 128))
            canvas.paste(resized, ((width - to[0]) // 2, (height - to[1]) // 2))
            resized = canvas
        values: NDArray[Any] = np.asarray(resized, np.float32) / np.float32(255.0)
        values = (values - np.array(self.options.mean, np.float32)) / np.array(self.options.std, np.float32)
        if self.options.layout == "nchw":
            values = values.transpose(2, 0, 1)
        dtype = np.float16 if "float16" in self._input.type else np.float32
        return np.ascontiguousarray(values[None], dtype)

    def _pool(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        pool = self.options.pool or ("none" if output.ndim <= 2 else "mean")
        vector: NDArray[np.float32]
        if pool == "none" or output.ndim == 2:
            vector = output.reshape(-1)
        elif output.ndim == 3:
            vector = output[0, 0] if pool == "cls" else output[0].mean(axis=0)
        elif output.ndim == 4 and pool == "mean":
            vector = output[0].mean(axis=(0, 1) if self.options.layout == "nhwc" else (1, 2))
        else:
            raise EngineError(f"{self.path}: can't pool an output of shape {list(output.shape)} with {pool!r}")
        return vector

    def _check_input(self) -> Any:
        inputs = self._session.get_inputs()
        first = inputs[0] if inputs else None
        if first is None or len(inputs) != 1 or len(first.shape) != 4 or "float" not in first.type:
            shapes = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "none"
            raise EngineError(f"{self.path}: an image encoder has one float input [1, 3, h, w]; this one has {shapes}")
        return first

    def _complete(self, options: EncoderOptions) -> EncoderOptions:
        """Fill in what the graph says; refuse what contradicts it."""
        shape = [d if isinstance(d, int) and d > 0 else 0 for d in self._input.shape]
        layout = options.layout or ("nhwc" if shape[3] == 3 and shape[1] != 3 else "nchw")
        fixed = (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
        size = (options.size[0] or fixed[0] or 224, options.size[1] or fixed[1] or 224)
        if any(f and f != s for f, s in zip(fixed, size)):
            raise UsageError(
                f"{self.path}: the graph takes {fixed[0]}x{fixed[1]} pixels, options say {size[0]}x{size[1]}"
            )
        names = [o.name for o in self._session.get_outputs()]
        output = options.output or names[0]
        if output not in names:
            raise UsageError(f"{self.path}: no output is named {output!r}; there are {', '.join(names)}")
        # As floats, so that 0 and 0.0 have one fingerprint.
        mean, std = _floats(options.mean), _floats(options.std)
        return replace(options, size=size, layout=layout, output=output, mean=mean, std=std)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(file_hash(self.path))
        for suffix in (".data", "_data"):
            beside = self.path.with_name(self.path.name + suffix)
            if beside.is_file():
                digest.update(file_hash(beside))
        digest.update(json.dumps(asdict(self.options), sort_keys=True).encode())
        return f"onnx:{digest.hexdigest()[:24]}"


def _beside(path: Path) -> EncoderOptions:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return EncoderOptions()
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise UsageError(f"{beside}: can't be read as JSON ({e})") from e
    if not isinstance(values, dict):
        raise UsageError(f"{beside}: a JSON object is needed")
    return EncoderOptions.parse(values, str(beside))


def _floats(values: tuple[float, float, float]) -> tuple[float, float, float]:
    return (float(values[0]), float(values[1]), float(values[2]))


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
