"""The fixtures of the runtime's tests: an agent is tested on the same bundles and scripted engines."""

from tests.runtime.conftest import bundle, bundle25, clock, frame, make_agent

__all__ = ["bundle", "bundle25", "clock", "frame", "make_agent"]
