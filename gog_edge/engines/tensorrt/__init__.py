"""TensorRT as an engine, on desktops (tensorrt-rtx) and on Jetson (tensorrt)."""
