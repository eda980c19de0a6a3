"""Run by `test_tensorrt_calls.py` in a process whose CUDA driver is the stand-in: `create` and two turns, for real."""

from __future__ import annotations

import ctypes
import gc
import json
import sys

import numpy as np

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.engines.tensorrt import TrtOptions
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, Region, Text
from tests.engines import fake_tensorrt


def turns(model: Model, frame: Frame) -> list[int]:
    session, ids = Session(model), []
    for index, region in enumerate((None, Region(20, 10, 120, 110))):
        session.add_image(frame, region, source=0)
        session.append([Control("<|im_start|>user\n"), ImagePart(index), Text("what?"), Control("<|im_end|>\n")])
        result = TurnResult()
        list(TurnWriter(session, Sampler(Sampling()), Speculation(0)).turn(TurnOptions(8, ()), None, result))
        ids += result.ids
    return ids


def main(path: str) -> None:
    sys.modules["tensorrt_rtx"] = fake_tensorrt
    bundle = Bundle.open(path)
    frame = Frame(np.random.default_rng(0).integers(0, 256, (141, 203, 3), dtype=np.uint8), "picture")
    options = RunOptions(prefix_cache=False)
    reference = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False))
    expected = turns(Model.assemble(bundle, reference, options), frame)
    live = ctypes.CDLL("libcuda.so.1").stub_live
    live.restype = ctypes.c_long
    for _ in range(2):  # the second time compiled kernels are found
        before = live()
        engine = create_engine("tensorrt-rtx", bundle, TrtOptions(device_crop=False))
        tokens = turns(Model.assemble(bundle, engine, options), frame)
        info = engine.describe()
        engine.close()
        del engine
        gc.collect()
        leaked = live() - before
    report = {
        "equal": tokens == expected,
        "tokens": len(tokens),
        "device": info.providers[0],
        "replayed": info.settings["graphs_replayed"],
        "events": fake_tensorrt.events,
        "leaked": leaked,
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
