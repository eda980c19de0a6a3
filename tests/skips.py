"""What may be skipped in CI, and why. Elsewhere any missing tool skips its tests; with GOG_EDGE_CI=1 a skip that is not
listed here fails the run, so that a lost extra can't turn tests off unseen."""

from __future__ import annotations

import os
import re

import pytest

ALLOWED = (
    (r"torchvision", "its wheels are built for one torch build each; the processors without it are compared"),
    (
        r"(aarch64-linux-gnu-g\+\+|qemu-aarch64\S*|clang\S*|chromium) is not installed",
        "a tool of the system, not of Python",
    ),
    (r"nvcc is not installed", "NVRTC compiles the same source for the same architectures"),
    (r"this CPU has no .*", "an instruction set of another processor"),
    (r"x86-64 instruction sets", "for tests of one architecture"),
    (r"TensorRT-RTX has wheels for x86-64 only", "nothing can be built with it elsewhere"),
    (r"this machine has a GPU", "tests of what happens without one"),
    (r"could not import 'litellm'", "its many packages are not installed for one test, which is run by hand"),
    (r"needs the extra dora", "dora-rs has no wheels for Python 3.10"),
    (r"this OpenCV has no GStreamer", "PyPI's builds have none; run by hand with Debian's"),
    (r"needs make ros2", "ROS 2 is 225 MB of wheels and builds; `make ros2` gets it where it is tested"),
    (r"needs the extra rerun", "its wheel has 170 MB, 500 MB installed; its tests are run by hand"),
    (r"needs GOG_EDGE_EXTRAS", "builds an environment for each extra from the index, 2.7 GB for gpu; make extras"),
    (r"needs the extra ray", "a cluster takes a minute to start; its tests are run by hand"),
    (r"this Pillow has no AVIF", "depends on how the wheel was built"),
)


def allowed(reason: str) -> bool:
    """Whether a test may be skipped for `reason`."""
    return any(re.search(pattern, reason) for pattern, _ in ALLOWED)


class StrictSkips:
    """A pytest plugin: collects the skips that are not allowed and fails the run over them."""

    def __init__(self) -> None:
        self.unexpected: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test, reason in sorted(self.unexpected.items()):
            terminalreporter.write_line(f"NOT RUN, and tests/skips.py does not allow it: {test}: {reason}", red=True)

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not allowed(reason):
            self.unexpected[report.nodeid] = reason


def register(config: pytest.Config) -> None:
    """Switch it on where CI asks for it; with xdist the controller sees every report."""
    if os.environ.get("GOG_EDGE_CI") == "1" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(StrictSkips(), "gog-edge-skips")
