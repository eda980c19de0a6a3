"""The error tree: every failure a caller can see, each derived from the matching built-in too.

A message is one line that says what is wrong and how to fix it. The command line prints it and exits with code 2;
library users catch `GogEdgeError`, one branch of it, or the builtin.
"""

from __future__ import annotations

_LONGEST = 1200  # characters of a message


class GogEdgeError(Exception):
    """Base of everything raised on purpose by gog-edge. Its text is one line, whatever words of others (a parser's, a
    server's, a file's) are in it."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class BundleError(GogEdgeError, ValueError):
    """A bundle is missing, corrupt, of another version, or built for another machine."""


class CheckpointError(GogEdgeError, ValueError):
    """A checkpoint can't be read, is of an unknown family, or uses something that can't be exported right."""


class ParityError(GogEdgeError, AssertionError):
    """An exported model differs from its reference by more than the gate allows."""


class ImageError(GogEdgeError, ValueError):
    """An image can't be decoded, or breaks a size limit."""


class CameraError(GogEdgeError, OSError):
    """A camera, stream or video can't be opened, or gave no frame for too long."""


class RegionError(GogEdgeError, ValueError):
    """A box is empty, outside of the image, or not a box."""


class DialectError(GogEdgeError, ValueError):
    """A dialect file is wrong, or a dialect does not fit the checkpoint."""


class GrammarError(GogEdgeError, ValueError):
    """A grammar can't be compiled for this tokenizer, or llguidance is missing."""


class ContextOverflowError(GogEdgeError, ValueError):
    """Appending would exceed the context; nothing was appended."""


class SessionError(GogEdgeError, ValueError):
    """A saved session does not fit this bundle, or an operation does not fit the session's state."""


class EngineError(GogEdgeError, RuntimeError):
    """An inference engine could not be created or failed while running."""


class SearchError(GogEdgeError, RuntimeError):
    """A search provider failed; the agent turns it into an error observation."""


class SearchTimeoutError(SearchError, TimeoutError):
    """A search provider did not answer in time."""


class SearchIndexError(GogEdgeError, ValueError):
    """A local index is missing, corrupt, or built with another encoder."""


class DatasetError(GogEdgeError, ValueError):
    """An evaluation data set can't be read."""


class BenchError(GogEdgeError, ValueError):
    """A benchmark scenario can't run as asked."""


class UsageError(GogEdgeError, ValueError):
    """An option or argument does not make sense; names the option and how to fix it."""


class CancelledError(GogEdgeError):
    """The caller cancelled a running question."""
