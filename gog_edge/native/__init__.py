"""C++ kernels compiled on the machine that runs them, once, and kept in the user's cache.

The wheel is pure Python: it ships sources.  See `gog_edge.native.build` for what is compiled
when, and what happens on a machine without a compiler (every caller has a numpy or stock-operator path).
"""

from __future__ import annotations

from gog_edge.native.build import NativeLibrary, NativeStatus, load_library, native_status, statuses

__all__ = ["NativeLibrary", "NativeStatus", "load_library", "native_status", "statuses"]
