"""THE contract between export and runtime: a directory with a manifest that names and hashes every other file.

Reading: `Bundle.open(path)`. Writing: `with BundleWriter(path) as writer: …; writer.commit(manifest)`; whatever
happens before `commit` returns, the old bundle (or none) is what a reader sees.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from gog_edge.errors import BundleError
from gog_edge.manifest import FORMAT, FORMAT_VERSION, FileDigest, Manifest
from gog_edge.serde import SerdeError, decode, encode

MANIFEST = "manifest.json"
VERIFY_FILE = "verify.json"  # how an export with --verify compared with transformers
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the manifest and where its files lie. Opening checks names and sizes; `verify` hashes."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest and check that every file is there in its full size.

        Raises:
            BundleError: not a bundle, another format version, or a missing or truncated file.
        """
        root = Path(path)
        file = root / MANIFEST
        if not file.is_file():
            hint = " (an HF checkpoint? run: gog-edge export)" if (root / "config.json").is_file() else ""
            raise BundleError(f"{root} is not a gog-edge bundle: it has no {MANIFEST}{hint}")
        try:
            data = json.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
            raise BundleError(f"{file} can't be read ({e}); export the checkpoint again") from e
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(f"{file} is not a gog-edge manifest; export the checkpoint with gog-edge export")
        if data.get("format_version") == 1:
            data = _from_format_1(data)
        if data.get("format_version") != FORMAT_VERSION:
            raise BundleError(
                f"{root} has bundle format {data.get('format_version')}, this gog-edge reads {FORMAT_VERSION}: "
                "export the checkpoint again with this version"
            )
        try:
            bundle = cls(root, decode(Manifest, data, "manifest"))
        except SerdeError as e:
            raise BundleError(f"{file}: {e}; export the checkpoint again") from e
        for name, digest in bundle.manifest.files.items():
            bundle._check_size(name, digest)
        return bundle

    def path(self, name: str) -> Path:
        """Absolute path of a file of the bundle.

        Raises:
            BundleError: the manifest does not name it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"bundle {self.root} has no file {name!r}")
        return (self.root / name).resolve()

    def has(self, name: str) -> bool:
        return name in self.manifest.files

    def read_text(self, name: str) -> str:
        """A file of the bundle as UTF-8 text."""
        return self.path(name).read_text("utf-8")

    @property
    def fingerprint(self) -> str:
        """Identity of the whole content: sha256 over all file digests (32 hex digits)."""
        h = hashlib.sha256()
        for name in sorted(self.manifest.files):
            h.update(f"{name}\0{self.manifest.files[name].sha256}\n".encode())
        return h.hexdigest()[:32]

    @property
    def vision_fingerprint(self) -> str:
        """Identity of the vision tower alone: index vectors made with it stay valid while this is equal."""
        spec = self.manifest.graphs["vision"]
        names = (spec.file, *spec.data)
        h = hashlib.sha256("".join(self.manifest.files[n].sha256 for n in names).encode())
        return h.hexdigest()[:32]

    def verify(self) -> Iterator[tuple[str, int]]:
        """Hash every file, yielding (name, bytes) as each one passes.

        Raises:
            BundleError: a file differs from what was exported.
        """
        for name, digest in self.manifest.files.items():
            self._check_size(name, digest)
            if hash_file(self.root / name).sha256 != digest.sha256:
                raise BundleError(f"{self.root / name} differs from its manifest (sha256); export or copy it again")
            yield name, digest.size

    def _check_size(self, name: str, digest: FileDigest) -> None:
        file = self.root / name
        if not file.resolve().is_relative_to(self.root.resolve()):
            raise BundleError(f"{self.root / MANIFEST} names {name!r}, which lies outside of the bundle")
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise BundleError(f"{self.root} lacks {name}; export or copy it again")
        if size != digest.size:
            raise BundleError(f"{file} has {size} bytes instead of {digest.size}; export or copy it again")


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 1, which said `target` and `flavour` where one says `backend` now, as one of format 2."""
    data = {**data, "format_version": 2}
    target, flavour = data.pop("target", "cpu"), data.pop("flavour", "ort")
    if target != "cpu":
        return {**data, "backend": target}
    if flavour == "standard":
        return {**data, "backend": "portable"}
    native = '"ai.gog_edge"' in json.dumps(data.get("graphs"))
    return {**data, "backend": "native" if native else "ort"}


def hash_file(path: Path) -> FileDigest:
    """sha256 and size of a file, read in chunks."""
    h = hashlib.sha256()
    size = 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            h.update(chunk)
            size += len(chunk)
    return FileDigest(h.hexdigest(), size)


class BundleWriter:
    """Builds a bundle in a hidden sibling directory and swaps it in as the last act.

    `root` is where files are written. Leaving the context without `commit` removes everything written.
    """

    def __init__(self, target: str | Path) -> None:
        self.target = Path(target).absolute()
        self.root = self.target.parent / f".{self.target.name}.partial-{os.getpid()}"
        self._digests: dict[str, FileDigest] = {}

    def __enter__(self) -> BundleWriter:
        if self.target.exists() and not (self.target / MANIFEST).is_file() and any(self.target.iterdir()):
            raise BundleError(f"{self.target} exists and is not a bundle: choose another folder or empty it")
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.root.mkdir()
        except OSError as e:
            raise BundleError(f"can't write beside {self.target}: {e.strerror or e}") from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.root.exists():
            shutil.rmtree(self.root, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == 28:
            raise BundleError(f"the disk of {self.target.parent} is full; nothing was changed") from error

    def record(self, name: str, digest: FileDigest) -> None:
        """Give the digest of a file that was hashed while it was written (saves reading it again)."""
        self._digests[name] = digest

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash what is not hashed yet, write the manifest, sync and swap the directory in."""
        files = {}
        for file in sorted(p for p in self.root.rglob("*") if p.is_file()):
            name = file.relative_to(self.root).as_posix()
            files[name] = self._digests.get(name) or hash_file(file)
            _sync(file)
        manifest = dataclasses.replace(manifest, files=files)
        path = self.root / MANIFEST
        path.write_text(json.dumps(encode(manifest), indent=1, ensure_ascii=False) + "\n", "utf-8")
        _sync(path)
        _sync(self.root)
        _swap(self.root, self.target)
        _sync(self.target.parent)
        return Bundle.open(self.target)

    def _remove_leftovers(self) -> None:
        """Directories of exports that were killed: their process is gone."""
        for path in self.target.parent.glob(f".{self.target.name}.partial-*"):
            pid = path.name.rpartition("-")[2]
            if pid.isdigit() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists():
                continue
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _swap(new: Path, target: Path) -> None:
    """Put `new` in the place of `target` in one step where the kernel can exchange names, else in two renames."""
    if not target.exists():
        new.rename(target)
        return
    if not _exchange(new, target):
        backup = new.with_name(new.name + ".old")
        target.rename(backup)
        new.rename(target)
        backup.rename(new)
    shutil.rmtree(new, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE); False where the C library or the file system lacks it."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done: int = renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange)
    return done == 0
