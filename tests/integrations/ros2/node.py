"""The node of integrations/ros2 in a process of its own, with a policy that plays $SCRIPT."""

from __future__ import annotations

import sys

from gog_edge_ros2.node import main

from tests.integrations.command import play

if __name__ == "__main__":
    play()
    sys.exit(main())
