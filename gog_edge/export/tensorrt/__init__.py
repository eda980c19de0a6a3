"""Building TensorRT engines out of a bundle's standard graphs."""
