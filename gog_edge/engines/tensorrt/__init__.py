"""TensorRT as an engine. Experimental: it has not run on a GPU yet (docs/tensorrt.md)."""

from gog_edge.engines.tensorrt.engine import TrtEngine, TrtOptions, create

__all__ = ["TrtEngine", "TrtOptions", "create"]
