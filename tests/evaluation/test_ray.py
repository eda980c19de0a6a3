"""A data set over a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gog_edge.errors import GogEdgeError
from gog_edge.evaluation.results import ResultsFile, read_results
from gog_edge.evaluation.samples import ImageRef, Sample
from gog_edge.evaluation.worker import AgentSpec, WorkerSpec
from tests.evaluation.fakes import make_agent, picture

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    pytest.skip("needs the extra ray", allow_module_level=True)
from gog_edge.evaluation.ray_cluster import run_on_ray


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    root = str(Path(__file__).resolve().parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")  # on a busy machine
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster.address
        ray.shutdown()
        cluster.shutdown()


def samples(folder: Path, questions: dict[str, str]) -> list[Sample]:
    (folder / "p.png").write_bytes(picture())
    return [Sample(i, q, ("x",), (ImageRef("file", "p.png"),)) for i, q in questions.items()]


def test_questions_are_spread_and_what_is_done_is_not_asked_again(address: str, tmp_path: Path) -> None:
    spec = WorkerSpec(AgentSpec("bundle"), (str(tmp_path),), make=make_agent)
    asked = samples(
        tmp_path,
        {"a": "say x", "b": "fail", "c": f"die once {tmp_path / 'died'}", "d": "die", "e": "say y", "f": "who"},
    )
    results = ResultsFile(tmp_path / "r.jsonl", {"n": 1})
    seen: list[str] = []
    run_on_ray(asked[:2], spec, results, address=address, workers=2, progress=lambda r: seen.append(r["id"]))
    results.close()
    results = ResultsFile(tmp_path / "r.jsonl", {"n": 1})
    run_on_ray(asked, spec, results, address=address, progress=lambda r: seen.append(r["id"]))
    results.close()
    assert sorted(seen) == ["a", "b", "c", "d", "e", "f"]
    rows = {r["id"]: r for r in read_results(tmp_path / "r.jsonl")[1]}
    assert rows["a"]["prediction"] == "x" and rows["a"]["scores"]["em"] == 1 and rows["a"]["size"] == [40, 30]
    assert rows["b"]["error"] == "EngineError: out of memory"
    assert rows["f"]["prediction"] == "f bundle"
    assert "died" in rows["d"]["error"] and rows["d"]["retry"]
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["settings"] == {"n": 1}


def test_a_policy_that_can_not_be_loaded_is_one_line(address: str, tmp_path: Path) -> None:
    spec = WorkerSpec(AgentSpec(str(tmp_path / "none")), (str(tmp_path),))
    results = ResultsFile(tmp_path / "r.jsonl", {})
    with pytest.raises(GogEdgeError, match="can't load the policy: BundleError"):
        run_on_ray(samples(tmp_path, {"a": "who"}), spec, results, address=address)
    results.close()


def test_nobody_there(tmp_path: Path) -> None:
    spec = WorkerSpec(AgentSpec("bundle"), (str(tmp_path),), make=make_agent)
    results = ResultsFile(tmp_path / "r.jsonl", {})
    with pytest.raises(GogEdgeError, match="no Ray cluster at"):
        run_on_ray(samples(tmp_path, {"a": "who"}), spec, results, address="ray://127.0.0.1:9")
    results.close()
