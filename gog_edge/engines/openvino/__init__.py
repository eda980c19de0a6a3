"""OpenVINO as an engine: Intel CPUs, GPUs and NPUs."""

from gog_edge.engines.openvino.options import OpenVinoOptions

__all__ = ["OpenVinoOptions"]
