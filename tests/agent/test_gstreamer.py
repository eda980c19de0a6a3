"""A GStreamer pipeline watched, where OpenCV was built with it (Debian's python3-opencv, JetPack's)."""

from __future__ import annotations

import re
import time
from itertools import islice

import pytest

from gog_edge.agent.camera.source import Source
from gog_edge.agent.camera.watch import Watch
from gog_edge.deadline import Budget
from gog_edge.errors import CameraError
from gog_edge.image.frame import Frame
from gog_edge.types import Answer, StopReason

cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
    pytest.skip("this OpenCV has no GStreamer", allow_module_level=True)

END = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"


def ask(frame: Frame, seconds: float | None, budget: Budget) -> Answer:
    time.sleep(0.2)
    return Answer("seen", StopReason.ANSWERED)


def test_a_live_pipeline_gives_its_newest_frame() -> None:
    size = "video/x-raw,width=320,height=240,framerate=30/1"
    with Watch(Source(f"videotestsrc is-live=true pattern=smpte ! {size} ! {END}"), ask, deadline=10.0) as seen:
        some = list(islice(seen, 4))
    assert all((one.frame.width, one.frame.height) == (320, 240) for one in some)
    assert all(one.dropped > 0 for one in some[1:])
    # colour bars: yellow is red and green
    red, green, blue = some[0].frame.pixels[10, 70].tolist()
    assert red > 150 and green > 150 and blue < 100


def test_a_pipeline_that_ends_is_opened_again() -> None:
    source = Source(f"videotestsrc num-buffers=2 ! video/x-raw,width=64,height=48 ! {END}")
    with Watch(source, ask, patience=20.0) as seen:
        numbers = [one.number for one in islice(seen, 3)]
    assert numbers == sorted(set(numbers)) and numbers[-1] >= 2


def test_a_pipeline_that_is_none_is_an_error_at_once() -> None:
    with pytest.raises(CameraError, match="can't be opened"), Watch(Source("nosuchelement ! appsink"), ask) as seen:
        next(seen)
