"""The suite: interleaving, limits, failures of one subject, and cells that add up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.machine.limits import encode_without_windows, memory_needed, stage_limits, weight_bytes
from gog_edge.bench.machine.probes import resident_bytes
from gog_edge.bench.machine.roofline import BesideProbe, Roofline, kv_bytes_read
from gog_edge.bench.report.terminal import format_place
from gog_edge.bench.result import Report, load
from gog_edge.bench.subject import Part, Picture, TurnTimes, Words, picture
from gog_edge.bench.suite import BESIDE, cells, run_conversation
from gog_edge.bench.workloads import WORKLOADS, TurnSpec, Workload
from gog_edge.bundle import Bundle
from gog_edge.errors import BenchError
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint

SHORT = Workload("short", "a test", (TurnSpec(((64, 64),), 5, 3), TurnSpec(words=4, tokens=2)), repeats=2)
MACHINE = Roofline(1, 10.0, {"fp32": 100.0})


class FakePeer:
    """Takes a fixed time; notes what was asked of it and when."""

    def __init__(self, name: str, seconds: float, log: list[str], fail: bool = False) -> None:
        self.name, self.seconds, self.log, self.fail = name, seconds, log, fail

    def load(self) -> float:
        return 0.0

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        self.log.append(self.name)
        if self.fail:
            raise BenchError("no such model")
        return TurnTimes(self.seconds, {"decode": self.seconds / 2}, 10, tokens, 1 << 20)

    def reset(self) -> None:
        self.log.append(f"reset {self.name}")

    def close(self) -> None:
        return


def test_subjects_take_turns_and_a_failing_one_drops_out() -> None:
    log: list[str] = []
    subjects = [FakePeer("gog-edge", 1.0, log), FakePeer("peer", 2.0, log), FakePeer("broken", 1.0, log, fail=True)]
    samples, failed = run_conversation(SHORT, subjects)
    assert failed == {"broken": "no such model"}
    assert log[:6] == ["reset gog-edge", "gog-edge", "gog-edge", "reset peer", "peer", "peer"]
    assert log.count("broken") == 1
    assert samples["peer"].stages[-1, "total"] == [4.0, 4.0]
    found = tuple(cells(SHORT, samples, None, None))
    report = Report("gog-edge-bench", "now", {}, {}, {}, found)
    ratios = {(ours.stage): r.p50 for ours, _, r in report.ratios()}
    assert ratios["total"] == ratios["turn 1 total"] == 0.5


def test_our_own_turns_write_what_was_asked(tiny_bundle: Path) -> None:
    subject = LocalSubject(tiny_bundle)
    subject.load()
    try:
        times = subject.turn([picture(64, 48, 1), Words(7)], 5)
        assert times.generated == 5
        assert {"crop", "encode", "prefill", "decode"} == set(times.stages)
        assert sum(times.stages.values()) <= times.total
        # words are read, as a prompt is; native operators have another arithmetic for what is written
        assert subject.session.sequence.written.tolist() == [False] * times.new_tokens + [True] * 5
        length = len(subject.session)
        later = subject.turn([Words(3, 9)], 2)
        assert (times.computed, later.computed) == (times.new_tokens, 3 + 1)
        # the last token of a turn is in the session, too
        assert len(subject.session) == length + 3 + 2
        subject.reset()
        assert len(subject.session) == 0
    finally:
        subject.close()


def test_limits_follow_the_work(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    small, after = stage_limits(bundle, MACHINE, TurnSpec(((64, 64),), 8, 4), 0)
    large, _ = stage_limits(bundle, MACHINE, TurnSpec(((256, 256),), 8, 4), 0)
    late, _ = stage_limits(bundle, MACHINE, TurnSpec(((64, 64),), 8, 4), 2000)
    assert large.encode > 10 * small.encode
    assert late.decode > small.decode
    assert small.of("crop") is None
    assert after > 12
    text, _ = stage_limits(bundle, MACHINE, TurnSpec(words=8, tokens=1), 0)
    assert (text.encode, text.decode) == (0.0, 0.0)


@pytest.fixture
def windowed_bundle(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    export_bundle(tiny_checkpoints["qwen2_5_vl"], tmp_path / "windowed", ExportOptions(precision="fp32"))
    return tmp_path / "windowed"


def test_a_tower_with_windows_is_held_against_them(tiny_bundle: Path, windowed_bundle: Path) -> None:
    turn = TurnSpec(((448, 448),), 8, 4)
    assert encode_without_windows(Bundle.open(tiny_bundle), MACHINE, turn) is None
    bundle = Bundle.open(windowed_bundle)
    full = encode_without_windows(bundle, MACHINE, turn)
    assert full is not None and full > stage_limits(bundle, MACHINE, turn, 0)[0].encode
    assert encode_without_windows(bundle, MACHINE, TurnSpec(words=8)) is None


def test_a_step_reads_the_experts_of_a_token(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("tiny-qwen3-vl-moe", tmp_path / "c")
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32"))
    sizes = {name: bundle.manifest.files[name].size for name in bundle.manifest.graphs["decoder"].data}
    experts = sizes.pop("decoder.experts.data")
    one, two = (weight_bytes(bundle, "decoder", tokens) for tokens in (1, 2))
    assert one == pytest.approx(sum(sizes.values()) + experts * 2 / 6)
    assert two == pytest.approx(sum(sizes.values()) + experts * (1 - (4 / 6) ** 2))
    step = stage_limits(bundle, MACHINE, TurnSpec(words=8, tokens=2), 0)[0].decode_bytes
    assert step == one + kv_bytes_read(bundle.manifest, 8)


def test_decoding_is_held_against_the_bandwidth_beside_its_own_run(tiny_bundle: Path) -> None:
    talk = Workload("decode", "a test", (TurnSpec(words=8, tokens=9),), repeats=2, warmup=1)
    rates = iter([5.0, 10.0, 2.0, 4.0])  # before and after each run; the first run does not count
    log: list[str] = []
    subjects = [FakePeer("gog-edge", 1.0, log), FakePeer("peer", 2.0, log)]
    samples, _ = run_conversation(talk, subjects, bandwidth=lambda: next(rates))
    assert samples["gog-edge"].read_gbs == [10.0, 4.0] and samples["peer"].read_gbs == []
    bundle = Bundle.open(tiny_bundle)
    found = {(c.subject, c.stage): c for c in cells(talk, samples, bundle, MACHINE)}
    share = found["gog-edge", BESIDE]
    read = stage_limits(bundle, MACHINE, talk.turns[0], 0)[0].decode_bytes
    assert share.samples == pytest.approx((100 * read / 10e9 / 0.5, 100 * read / 4e9 / 0.5))
    assert share.limit == 100.0 and share.note == "4.0 to 10.0 GB/s"
    assert ("peer", BESIDE) not in found
    assert not any(c.stage == BESIDE for c in cells(talk, samples, bundle, None))


def test_the_probe_reads_again_in_its_own_process() -> None:
    probe = BesideProbe(1, size_mb=4)
    try:
        assert probe() > 0 and probe() > 0
    finally:
        probe.close()


def test_every_shipped_conversation_asks_for_something() -> None:
    for several in WORKLOADS.values():
        for conversation in several:
            for turn in conversation.turns:
                assert turn.parts(1) and turn.tokens >= 1


def test_pictures_differ_by_seed() -> None:
    one, two = picture(32, 16, 1), picture(32, 16, 2)
    assert isinstance(one, Picture) and one.pixels.shape == (16, 32, 3)
    assert (one.pixels != two.pixels).any()
    assert (one.pixels == picture(32, 16, 1).pixels).all()


def test_places_keep_their_fractions() -> None:
    assert [format_place(x) for x in (None, 0.2, 1.0, 1_000_000)] == ["", "0.2", "1", "1,000,000"]


def test_a_report_survives_the_disk_and_another_file_is_refused(tmp_path: Path) -> None:
    report = Report("gog-edge-bench", "now", {"cpu": "x"}, {}, {}, (), {"a": "b"})
    report.save(tmp_path / "r.json")
    assert load(tmp_path / "r.json") == report
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(BenchError, match=r"x\.json"):
        load(tmp_path / "x.json")


class Listener(FakePeer):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__("gog-edge", 1.0, [])
        self.given: list[Part] = []

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        self.given += parts
        return super().turn(parts, tokens)


def test_no_two_turns_share_pixels_or_words() -> None:
    """Of any run or scenario: a peer with a cache of prefixes once answered `decode` from what `prefill` had left."""
    listener = Listener()
    for name in ("short", "other"):
        run_conversation(Workload(name, "a test", SHORT.turns, repeats=2), [listener], salt=3)
    words = [p.seed for p in listener.given if isinstance(p, Words)]
    assert len(words) == 2 * 3 * 2 == len(set(words))
    pixels = [p.pixels.tobytes() for p in listener.given if isinstance(p, Picture)]
    assert len(pixels) == 6 == len(set(pixels))
    again = Listener()
    run_conversation(Workload("short", "a test", SHORT.turns, repeats=2), [again], salt=4)
    assert not {p.seed for p in again.given if isinstance(p, Words)} & set(words)


def test_a_growing_conversation_is_a_curve() -> None:
    grown = WORKLOADS["growth-context"][0]
    samples, _ = run_conversation(grown, [FakePeer("gog-edge", 1.0, [])])
    found = [c for c in cells(grown, samples, None, None) if c.stage == "decode"]
    assert [c.x for c in found] == [1024, 2048, 4096, 8192, 16384]
    before = 0
    for turn in grown.turns:
        assert before + turn.words == turn.x
        before += turn.words + turn.tokens


def test_a_curve_can_be_cut_short() -> None:
    (grown,) = WORKLOADS["growth-context"]
    short = grown.until(4096)
    assert short is not None and [t.x for t in short.turns] == [1024, 2048, 4096]
    assert grown.until(None) is grown and grown.until(5) is None
    assert [c.until(2) is not None for c in WORKLOADS["growth-images"]] == [True, True, False, False]
    assert SHORT.until(1) == SHORT


def test_warmup_and_repeats_replace_the_conversations_own() -> None:
    samples, _ = run_conversation(SHORT, [FakePeer("gog-edge", 1.0, [])], repeats=3, warmup=0)
    assert len(samples["gog-edge"].resident) == 3


def test_our_own_memory_is_this_process_alone(tiny_bundle: Path) -> None:
    """A peer's worker is a child of this process: its memory must not count as ours."""
    ballast = f"import time; x = bytearray({300 << 20}); print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", ballast], stdout=subprocess.PIPE)
    subject = LocalSubject(tiny_bundle)
    try:
        assert child.stdout is not None and child.stdout.readline()
        subject.load()
        times = subject.turn([Words(7)], 2)
        everything = resident_bytes(os.getpid())
    finally:
        subject.close()
        child.kill()
        child.communicate()
    assert everything - times.resident > 250 << 20
    assert times.peak == 0 or times.peak >= times.resident - (8 << 20)


def test_memory_needed_counts_weights_cache_and_one_image(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    weights = sum(f.size for n, f in bundle.manifest.files.items() if n.endswith((".data", ".bin")))
    none = memory_needed(bundle, Workload("c", "", (TurnSpec(words=0, tokens=0),)))
    text = memory_needed(bundle, Workload("c", "", (TurnSpec(words=100, tokens=20),)))
    one = memory_needed(bundle, Workload("c", "", (TurnSpec(((64, 64),), 100, 20),)))
    two = memory_needed(bundle, Workload("c", "", (TurnSpec(((64, 64),), 50, 10), TurnSpec(((64, 64),), 50, 10))))
    assert none == weights
    assert text - none == kv_bytes_read(bundle.manifest, 120)
    rows = stage_limits(bundle, MACHINE, TurnSpec(((64, 64),)), 0)[1] - 1  # the image's tokens
    assert two - one == kv_bytes_read(bundle.manifest, rows)  # the second one is kept, not computed beside it
    assert one - text > kv_bytes_read(bundle.manifest, rows)
