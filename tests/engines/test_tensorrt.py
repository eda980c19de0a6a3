"""The TensorRT engine's own code on host leaf calls: the same tokens as ONNX Runtime, in place, replayed, in order."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.crop import cuda
from gog_edge.deadline import Budget, DeadlineReached, SystemClock
from gog_edge.engines.base import CutsCrops, Engine, FixedContext, TakesFeatures
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.engines.tensorrt import TrtEngine
from gog_edge.engines.tensorrt.memory import DeviceFeatures, TrtKvCache
from gog_edge.errors import ContextOverflowError, EngineError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.vision import vision_inputs
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, PixelLimits, Region, Segment, Text
from tests.crop.fake_gpu import FakeDriver, build_grid
from tests.engines.host_gpu import HostGpu
from tests.engines.host_trt import host_engine
from tests.runtime.conftest import picture
from tests.runtime.fakes import make_bundle
from tests.versions import need_portable

FIRST: list[Segment] = [
    Control("<|im_start|>system\nyou are a tool of search<|im_end|>\n<|im_start|>user\n"),
    ImagePart(0),
    Text("what is it?"),
    Control("<|im_end|>\n<|im_start|>assistant\n"),
]
SECOND: list[Segment] = [
    Control("<|im_end|>\n<|im_start|>user\n"),
    ImagePart(1),
    Text("and here?"),
    Control("<|im_end|>\n<|im_start|>assistant\n"),
]
CROP = Region(20, 10, 120, 110)


@pytest.fixture(scope="module", params=["tiny-qwen3-vl", "tiny-qwen2.5-vl"])
def portable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    need_portable()
    return make_bundle(tmp_path_factory.mktemp("portable"), request.param, "portable")


@pytest.fixture(scope="module")
def reference(portable: Bundle) -> Iterator[Engine]:
    """The very same graphs on the ONNX Runtime engine."""
    engine = create_engine("cpu", portable, OrtOptions(threads=1, spin=False))
    yield engine
    engine.close()


@pytest.fixture
def gpu() -> HostGpu:
    return HostGpu()


@pytest.fixture
def engine(portable: Bundle, gpu: HostGpu) -> Iterator[TrtEngine]:
    engine = host_engine(portable, gpu)
    yield engine
    engine.close()


def model(bundle: Bundle, engine: Engine, **options: object) -> Model:
    return Model.assemble(bundle, engine, RunOptions(prefix_cache=False, **options))  # type: ignore[arg-type]


def turn(session: Session, count: int, *, guesses: int = 0) -> list[int]:
    writer = TurnWriter(session, Sampler(Sampling()), Speculation(max_draft=guesses, adaptive=False))
    result = TurnResult()
    list(writer.turn(TurnOptions(count, ()), None, result))
    return result.ids


def first_turn(model: Model, frame: Frame, count: int = 8) -> tuple[Session, list[int]]:
    session = Session(model)
    session.add_image(frame)
    session.append(FIRST)
    return session, turn(session, count)


def second_turn(session: Session, frame: Frame, count: int = 8) -> list[int]:
    session.add_image(frame, CROP, source=0)
    session.append(SECOND)
    return turn(session, count)


def test_two_turns_rewind_and_load_give_the_tokens_of_onnxruntime(
    portable: Bundle, reference: Engine, engine: TrtEngine, frame: Frame, tmp_path: Path
) -> None:
    wanted, ours = model(portable, reference), model(portable, engine)
    expected, tokens = first_turn(wanted, frame)
    session, mine = first_turn(ours, frame)
    assert mine == tokens
    mark = session.mark()
    again = second_turn(expected, frame)
    assert second_turn(session, frame) == again
    session.rewind(mark)
    saved = save_session(session, tmp_path / "s.gogs")
    assert second_turn(session, frame) == again
    loaded, _ = load_session(saved, ours)
    assert second_turn(loaded, frame) == again
    elsewhere, _ = load_session(saved, wanted)  # the KV cache of one engine goes on in the other
    assert second_turn(elsewhere, frame) == again


def test_logits_agree_closely(portable: Bundle, reference: Engine, engine: TrtEngine, frame: Frame) -> None:
    expected, _ = first_turn(model(portable, reference), frame, 1)
    session, _ = first_turn(model(portable, engine), frame, 1)
    assert np.allclose(expected.run(), session.run(), atol=2e-4)


def test_guessed_tokens_change_nothing(portable: Bundle, engine: TrtEngine, frame: Frame) -> None:
    ours = model(portable, engine)
    _, plain = first_turn(ours, frame, 20)
    session = Session(ours)
    session.add_image(frame)
    session.append(FIRST)
    assert turn(session, 20, guesses=3) == plain


def test_the_protocols_extensions_are_seen(engine: TrtEngine, reference: Engine) -> None:
    assert isinstance(engine.decoder, TakesFeatures) and isinstance(engine.decoder, FixedContext)
    assert isinstance(engine.vision, CutsCrops)
    assert not isinstance(reference.decoder, (TakesFeatures, FixedContext))


def test_features_stay_on_the_device(portable: Bundle, engine: TrtEngine, gpu: HostGpu, frame: Frame) -> None:
    ours = model(portable, engine)
    session = Session(ours)
    session.add_image(frame)
    session.append(FIRST)
    gpu.calls.clear()
    session.run()
    features = ours.vision.encode(ours.vision.plan(frame))[0]
    assert isinstance(features, DeviceFeatures) and features._host is None
    hidden, layers = portable.manifest.decoder.hidden, portable.manifest.decoder.deepstack
    copies = [call[1] for call in gpu.calls if call[0] == "copy"]
    assert sum(copies) == 4 * features.tokens * hidden * (1 + layers)
    vision_stream, decoder_stream = 0, 1
    assert ("wait", vision_stream, decoder_stream) in gpu.calls
    # only logits come down: nothing is synchronized on the tower's stream
    assert ("synchronize", vision_stream) not in gpu.calls
    vocab = portable.manifest.decoder.vocab
    assert {call[1] for call in gpu.calls if call[0] == "download"} == {4 * vocab}


def test_features_come_to_the_host_when_asked(portable: Bundle, reference: Engine, engine: TrtEngine) -> None:
    inputs = vision_inputs(portable.manifest, 4, 6)
    side = portable.manifest.preprocessing.patch_values
    inputs["patches"] = np.random.default_rng(0).standard_normal((24, side)).astype(np.float32)
    ours, theirs = engine.vision.run(inputs), reference.vision.run(inputs)
    assert np.allclose(ours.main, theirs.main, atol=1e-5)
    assert ours.nbytes == theirs.nbytes
    if theirs.deepstack is None:
        assert ours.deepstack is None
    else:
        assert ours.deepstack is not None and np.allclose(ours.deepstack, theirs.deepstack, atol=1e-5)


def test_without_the_event_the_decoder_would_read_garbage(
    portable: Bundle, engine: TrtEngine, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's streams are as lazy as a device's: this guards the guard."""
    good, _ = first_turn(model(portable, engine), frame, 1)
    monkeypatch.setattr(HostGpu, "wait", lambda self, event, stream: None)
    bad, _ = first_turn(model(portable, engine), frame, 1)
    assert not np.allclose(good.run(), bad.run(), atol=1e-2, equal_nan=False)


def test_decoding_is_replayed(portable: Bundle, engine: TrtEngine, gpu: HostGpu, frame: Frame) -> None:
    session, _ = first_turn(model(portable, engine), frame, 1)
    decoder = engine.decoder
    gpu.calls.clear()
    turn(session, 6)
    kinds = [call[0] for call in gpu.calls]
    # six steps: one plain, one that is captured on the way, four launches
    assert (kinds.count("run"), kinds.count("launch")) == (2, 4)
    assert [c[1] for c in gpu.calls if c[0] == "record"] == ["upload", "run", "download"]
    first = kinds.index("launch")
    assert kinds[first:] == ["launch", "synchronize"] * 4  # a step is one launch, and nothing is allocated
    assert (decoder.captured, decoder.replayed) == (1, 4)


def test_graphs_give_the_same_tokens_as_without(portable: Bundle, engine: TrtEngine, frame: Frame) -> None:
    plain = host_engine(portable, graphs=False)
    _, expected = first_turn(model(portable, plain), frame, 16)
    session, ours = first_turn(model(portable, engine), frame, 16)
    assert ours == expected
    assert engine.decoder.replayed > 0 and plain.decoder.replayed == 0
    other, theirs = first_turn(model(portable, engine), frame, 16)  # another cache: other addresses, other graphs
    assert theirs == expected and engine.decoder.captured == 2
    assert second_turn(session, frame) == second_turn(other, frame)
    plain.close()


def test_a_capture_that_fails_is_said_and_lived_with(
    portable: Bundle, engine: TrtEngine, frame: Frame, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = first_turn(model(portable, engine), frame, 6)

    def refuse(self: HostGpu, stream: object) -> None:
        raise EngineError("CUDA failed beginning a capture: no")

    other = host_engine(portable)
    monkeypatch.setattr(HostGpu, "begin_capture", refuse)
    _, tokens = first_turn(model(portable, other), frame, 6)
    assert tokens == expected
    assert other.describe().settings["graphs"] is False
    assert "going on without CUDA graphs" in caplog.text
    other.close()


@pytest.mark.parametrize("chunk", [1, 5, 32, 64])
def test_chunks_beyond_the_engines_are_cut(portable: Bundle, engine: TrtEngine, frame: Frame, chunk: int) -> None:
    one, _ = first_turn(model(portable, engine, prefill_chunk=512), frame, 1)
    other, _ = first_turn(model(portable, engine, prefill_chunk=chunk), frame, 1)
    assert np.allclose(one.run(), other.run(), atol=2e-4)


def test_the_profile_follows_the_number_of_tokens(
    portable: Bundle, engine: TrtEngine, gpu: HostGpu, frame: Frame
) -> None:
    session, _ = first_turn(model(portable, engine), frame, 3)
    runs = [call[1:] for call in gpu.calls if call[0] == "run" and call[2] != (0,)]
    assert {profile for profile, (count,) in runs if count > 4} == {0}
    assert {profile for profile, (count,) in runs if count <= 4} <= {1}
    assert max(count for _, (count,) in runs) == 32
    assert len(session) > 32


def test_a_full_cache_names_the_option(engine: TrtEngine) -> None:
    cache = engine.decoder.new_cache(10)
    assert cache.capacity == 256
    with pytest.raises(EngineError, match=r"holds 256 tokens, 300 are needed.*--capacity 512"):
        cache.reserve(300, 0)
    with pytest.raises(EngineError, match="--capacity"):
        engine.decoder.new_cache(257)


def test_sessions_know_the_capacity(portable: Bundle, engine: TrtEngine) -> None:
    session = Session(model(portable, engine))
    assert session.model.max_context == 256
    with pytest.raises(ContextOverflowError, match="exceed the context of 256"):
        session.append([Text("word " * 400)])


def test_rows_are_written_and_read_back(engine: TrtEngine) -> None:
    cache = engine.decoder.new_cache(1)
    assert isinstance(cache, TrtKvCache)
    assert all(not a.any() for a in cache.read(0, 256))  # masked rows must be numbers
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(a.shape).astype(a.dtype) for a in cache.read(3, 9)]
    cache.write(3, rows)
    for written, found in zip(rows, cache.read(3, 9)):
        assert np.array_equal(written, found)
    assert not any(a.any() for a in cache.read(0, 3) + cache.read(9, 20))
    with pytest.raises(EngineError, match="can't take 1"):
        cache.write(0, rows[:1])
    with pytest.raises(EngineError, match="are not in a KV cache"):
        cache.read(250, 257)
    with pytest.raises(EngineError, match="do not fit"):
        cache.write(0, [a[:, :, :1] for a in rows])


def test_images_outside_of_the_profile_are_refused(portable: Bundle, engine: TrtEngine) -> None:
    inputs = vision_inputs(portable.manifest, 2, 2)
    inputs["patches"] = np.zeros((4, portable.manifest.preprocessing.patch_values), np.float32)
    with pytest.raises(EngineError, match=r"an image of 4 patches .* built for: 16 to 1024 patches"):
        engine.vision.run(inputs)


def test_large_images_are_shown_as_large_as_the_engine_takes_them(portable: Bundle, engine: TrtEngine) -> None:
    """A photo beyond the profile is made smaller, whatever the session's limits say."""
    photo = Frame.open(np.zeros((1500, 2000, 3), np.uint8))
    plan = model(portable, engine).vision.plan(photo, None, PixelLimits(max_pixels=1 << 23))
    assert 900 < plan.grid.patches <= engine.vision.max_patches == 1024


def test_no_memory_is_one_line_and_leaks_nothing(portable: Bundle) -> None:
    gpu = HostGpu(memory=1 << 20)
    with pytest.raises(EngineError, match="no memory on the device"):
        host_engine(portable, gpu, {"chunk": 4096, "capacity": 4096})
    assert not gpu.live
    gpu = HostGpu(memory=1 << 40)
    engine = host_engine(portable, gpu)
    gpu._memory = sum(b.nbytes for b in gpu.live) + 100
    with pytest.raises(EngineError, match=r"KV cache of 256 tokens .*smaller --capacity"):
        engine.decoder.new_cache(1)
    engine.close()


def test_everything_is_freed(portable: Bundle, gpu: HostGpu, frame: Frame) -> None:
    engine = host_engine(portable, gpu)
    ours = model(portable, engine)
    session, _ = first_turn(ours, frame, 6)
    held = len(gpu.live)
    del session
    gc.collect()
    first_turn(ours, frame, 6)  # memory of the dead session goes before new memory is taken
    gc.collect()
    assert len(gpu.live) <= held
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        _ = engine.decoder
    ours.vision.cache.clear()
    del ours
    gc.collect()
    gpu.drain()
    assert not gpu.live
    contexts = [c[0] for c in gpu.calls if c[0] in ("context", "close context")]
    assert contexts.count("context") == contexts.count("close context")


def test_a_living_session_meets_a_closed_engine(portable: Bundle, gpu: HostGpu, frame: Frame) -> None:
    engine = host_engine(portable, gpu)
    session, _ = first_turn(model(portable, engine), frame, 6)
    engine.close()
    session.append([Text("more")])
    with pytest.raises(EngineError, match="the engine is closed"):
        session.run()


def test_the_budget_ends_a_prefill_between_pieces(portable: Bundle, engine: TrtEngine, frame: Frame) -> None:
    session = Session(model(portable, engine))
    session.append([Text("word " * 50)])

    class Hasty(SystemClock):
        """A second passes whenever somebody looks."""

        seen = 0.0

        def now(self) -> float:
            self.seen += 1
            return self.seen

    with pytest.raises(DeadlineReached):
        session.run(budget=Budget(3, clock=Hasty()))
    assert session.run().shape == (1, portable.manifest.decoder.vocab)


def test_another_engines_cache_is_refused(portable: Bundle, reference: Engine, engine: TrtEngine) -> None:
    from gog_edge.engines.base import DecoderInputs

    spec = portable.manifest.decoder
    half = np.zeros((1, spec.head_dim // 2), np.float32)
    inputs = DecoderInputs(np.zeros((1, spec.hidden), np.float32), half, half, None, 1)
    with pytest.raises(EngineError, match="does not belong to the TensorRT engine"):
        engine.decoder.run(inputs, reference.decoder.new_cache(4), 0)
    with pytest.raises(EngineError, match="logits of the last 2 of 1"):
        cache = engine.decoder.new_cache(4)
        engine.decoder.run(DecoderInputs(inputs.embeds, half, half, None, 2), cache, 0)


def test_describe_says_what_runs(engine: TrtEngine) -> None:
    info = engine.describe()
    assert info.name == "onnxruntime" and info.providers == ("host",)
    assert info.settings["capacity"] == 256 and info.settings["crops"] == "on the host, as asked"


class StreamCropDriver(FakeDriver):
    """The crop kernel's grid on the host GPU's memory and stream, so that its order with the tower matters."""

    def __init__(self, grid: ctypes.CDLL, gpu: HostGpu) -> None:
        super().__init__(grid)
        self.gpu, self.stream = gpu, gpu.stream()

    def allocate(self, nbytes: int) -> Any:
        return self.gpu.allocate(nbytes, self.stream)

    def upload(self, target: Any, array: Any) -> None:
        self.gpu.upload(target.address, np.array(array), self.stream)

    def launch(self, kernel: Any, grid: Any, block: int, arguments: Any) -> None:
        kept = list(arguments)
        super_launch = super().launch
        self.gpu.put(self.stream, "launch crop", lambda: super_launch(kernel, grid, block, kept))


def test_crops_stay_on_the_device(
    portable: Bundle, engine: TrtEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crop kernel, tower and decoder follow each other without the host between them, and the tokens are the same."""
    monkeypatch.setattr(cuda, "crop_cubin", lambda arch, directory: b"\x7fELF gog_crop")
    small = picture(0, 96, 64)
    session, expected = first_turn(model(portable, engine), small, 4)
    gpu = HostGpu()
    driver = StreamCropDriver(build_grid(tmp_path), gpu)
    gpu._crop = driver
    monkeypatch.setattr(gpu, "crop_driver", lambda: (driver, driver.stream))
    device = host_engine(portable, gpu, device_crop=True)
    assert device.describe().settings["crops"] == "on the device"
    theirs, tokens = first_turn(model(portable, device), small, 4)
    assert tokens == expected
    frame_bytes = small.pixels.nbytes
    assert [c[1] for c in gpu.calls if c[0] == "upload"].count(frame_bytes) == 1
    gpu.calls.clear()
    region = Region(10, 5, 80, 60)
    for each in (session, theirs):
        each.add_image(small, region, source=0)
        each.append([ImagePart(1)])
    assert np.array_equal(session.run(), theirs.run())
    kinds = [c[0] for c in gpu.calls]
    assert kinds.index("launch crop") < kinds.index("run") < kinds.index("event") < kinds.index("wait")
    assert frame_bytes not in [c[1] for c in gpu.calls if c[0] == "upload"]  # the frame is there already
    patches = portable.manifest.preprocessing.patch_values * 4
    assert not [c for c in gpu.calls if c[0] == "upload" and c[1] % patches == 0 and c[1] > 16 * patches]
    device.close()


def test_no_crop_kernel_is_said_and_lived_with(portable: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(arch: str, directory: Any) -> bytes:
        raise EngineError("the CUDA crop kernel needs NVRTC")

    monkeypatch.setattr(cuda, "crop_cubin", missing)
    gpu = HostGpu()
    monkeypatch.setattr(gpu, "crop_driver", lambda: (FakeDriver(ctypes.CDLL(None)), gpu.stream()))
    engine = host_engine(portable, gpu, device_crop=True)
    assert engine.describe().settings["crops"] == "on the host: the CUDA crop kernel needs NVRTC"
    first_turn(model(portable, engine), picture(0, 96, 64), 2)
    engine.close()
