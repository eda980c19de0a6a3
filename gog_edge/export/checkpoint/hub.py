"""Where a checkpoint lies: a local folder, or a hub id downloaded through huggingface_hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from gog_edge.disk.paths import expand
from gog_edge.errors import CheckpointError

# A Windows path, ./x, ~/x or /x is never a hub id; owner/name is, when no such folder exists.
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# Never *.bin or *.pt: pickles are refused anyway, so there is no point in fetching gigabytes of them.
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def locate(path_or_hub_id: str | Path, revision: str | None) -> Path:
    """The folder of a checkpoint or adapter, downloading it when a hub id is given.

    Raises:
        CheckpointError: no such folder, or the download failed (offline, private, unknown).
    """
    text = str(path_or_hub_id)
    path = expand(text)
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{text} is a folder: a revision only makes sense with a hub id")
        return path
    if path.suffix.lower() == ".gguf" and (path.exists() or not _HUB_ID.match(text)):
        raise CheckpointError(f"{text} is a GGUF file (llama.cpp); export needs the original HF checkpoint's folder")
    if path.exists():
        raise CheckpointError(f"{text} is a file: give the checkpoint's folder, or a hub id like owner/name")
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.match(text):
        raise CheckpointError(f"{text}: no such folder (and not a hub id like owner/name)")
    return _download(text, revision)


def _download(hub_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise CheckpointError(
            f"{hub_id} is not a folder here, and huggingface_hub is missing to download it: "
            "pip install 'gog-edge[export]'"
        ) from e
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_PATTERNS))
    except Exception as e:  # the hub client's error tree differs by version
        raise CheckpointError(_reason(hub_id, revision, e)) from e
    if "gguf" in hub_id.lower() and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{hub_id} holds GGUF weights (llama.cpp) only; export the original HF checkpoint instead"
        )
    return folder


def _reason(hub_id: str, revision: str | None, error: Exception) -> str:
    kind = type(error).__name__
    where = f"{hub_id}@{revision}" if revision else hub_id
    if kind == "GatedRepoError":
        return f"{where} needs your consent on its hub page and a token (hf auth login)"
    if kind == "RepositoryNotFoundError":
        return f"{where}: no such folder, and the hub has no such repository (or it is private: hf auth login)"
    if kind == "RevisionNotFoundError":
        return f"{hub_id} has no revision {revision!r}"
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "ConnectTimeout"):
        return f"{where} is not in the local cache and the hub can't be reached: go online or give a folder"
    line = (str(error).strip().splitlines() or [""])[0]
    return f"downloading {where} failed: {kind}: {line}"
