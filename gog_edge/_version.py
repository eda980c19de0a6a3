"""The version, read by the build and by `gog_edge.__version__`."""

__version__ = "0.1.0"
