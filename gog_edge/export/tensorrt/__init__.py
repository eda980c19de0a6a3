"""Building TensorRT engines out of a bundle's portable graphs."""
