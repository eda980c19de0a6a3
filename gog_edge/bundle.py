"""THE contract between export and runtime: a directory with a manifest that names and hashes every other file.

Reading: `Bundle.open(path)`. Writing: `with BundleWriter(path) as writer: …; writer.commit(manifest)`; whatever
happens before `commit` returns, the old bundle (or none) is what a reader sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from gog_edge.disk import leftovers
from gog_edge.disk.files import sha256_of
from gog_edge.disk.leftovers import sync
from gog_edge.disk.stamps import Checked, Stamp, hash_of, stamp_of
from gog_edge.errors import BundleError, GogEdgeError
from gog_edge.manifest import FORMAT, FORMAT_VERSION, FileDigest, Manifest
from gog_edge.serde import SerdeError, decode, encode

log = logging.getLogger("gog_edge")
_Loaded = TypeVar("_Loaded")

MANIFEST = "manifest.json"
SEAL = "seal"  # of manifest.json: what all of its other keys hash to; who edits one by hand deletes it
VERIFY_FILE = "verify.json"  # how an export with --verify compared with transformers
_TRIES = 8  # a bundle that is replaced more often than it can be loaded is nobody's


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the manifest and where its files lie.

    Opening checks names and sizes, and remembers by `stamps` which files they are: all of one moment, so that a bundle
    that is replaced meanwhile can't be mixed with the one that takes its place. `check` and `verify` read them.
    """

    root: Path
    manifest: Manifest
    stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest and check that every file is there in its full size.

        Raises:
            BundleError: not a bundle, another format version, or a missing or truncated file.
        """
        root = Path(path)
        if not (root / MANIFEST).is_file():
            leftovers.sweep_once(root.absolute().parent)  # an export that was killed while it put this one away
        for _ in range(_TRIES):
            before = _stamp(root / MANIFEST)
            try:
                manifest = cls._read(root)
                stamps = {name: _check_size(root, name, digest) for name, digest in manifest.files.items()}
            except BundleError:
                if _stamp(root / MANIFEST) == before:
                    raise
                continue
            if before is not None and _stamp(root / MANIFEST) == before:
                return cls(root, manifest, {**stamps, MANIFEST: before})
        raise BundleError(f"{root} is replaced again and again; try again when nothing is exported to it")

    @staticmethod
    def _read(root: Path) -> Manifest:
        file = root / MANIFEST
        if not file.is_file():
            hint = " (an HF checkpoint? run: gog-edge export)" if (root / "config.json").is_file() else ""
            raise BundleError(f"{root} is not a gog-edge bundle: it has no {MANIFEST}{hint}")
        try:
            data = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as e:
            raise BundleError(f"{file} can't be read ({e}); export the checkpoint again") from e
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(f"{file} is not a gog-edge manifest; export the checkpoint with gog-edge export")
        sealed = data.pop(SEAL, None)  # none: written by an older version, or by hand
        if sealed is not None and sealed != _seal(data):
            raise BundleError(f"{file} differs from what was exported; export or copy it again")
        if data.get("format_version") == 1:
            data = _from_format_1(data)
        if data.get("format_version") == 2:  # nothing that it holds means something else now
            data = {**data, "format_version": FORMAT_VERSION}
        if data.get("format_version") != FORMAT_VERSION:
            raise BundleError(
                f"{root} has bundle format {data.get('format_version')}, this gog-edge reads {FORMAT_VERSION}: "
                "export the checkpoint again with this version"
            )
        try:
            manifest = decode(Manifest, data, "manifest")
        except SerdeError as e:
            raise BundleError(f"{file}: {e}; export the checkpoint again") from e
        used = {n for g in manifest.graphs.values() for n in (g.file, *g.data)} | {manifest.embedding.file}
        if lost := sorted(used - manifest.files.keys()):
            raise BundleError(f"{file} has no hash of {lost[0]!r}, which its graphs use; export the checkpoint again")
        return manifest

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

    @property
    def weights(self) -> frozenset[str]:
        """Files that are read as numbers and as nothing else."""
        files = {name for graph in self.manifest.graphs.values() for name in graph.data}
        return frozenset(files | {self.manifest.embedding.file})

    def changed(self) -> bool:
        """Whether a file was replaced, written to or removed since the bundle was opened."""
        return any(_stamp(self.root / name) != stamp for name, stamp in self.stamps.items())

    def check(self, names: Collection[str]) -> None:
        """Hash those files that this machine has not hashed since they were last written; the cache remembers.

        Raises:
            BundleError: a file differs from what was exported.
        """
        cached = Checked.of(self.root)
        seen = dict(cached.known)
        for name in sorted(names):
            digest, stamp = self.manifest.files[name], self.stamps.get(name)
            if stamp is None or cached.has(name, stamp, digest.sha256):
                continue
            self._hash(name, digest)
            seen[name] = (stamp, digest.sha256)
        self._remember(cached, seen)

    def verify(self) -> Iterator[tuple[str, int]]:
        """Hash every file, whatever is remembered, yielding (name, bytes) as each one passes.

        Raises:
            BundleError: a file differs from what was exported.
        """
        cached = Checked.of(self.root)
        seen: dict[str, tuple[Stamp, str]] = {}
        try:
            for name, digest in self.manifest.files.items():
                _check_size(self.root, name, digest)
                seen[name] = (self._hash(name, digest), digest.sha256)
                yield name, digest.size
        finally:
            self._remember(cached, seen)

    def _hash(self, name: str, digest: FileDigest) -> Stamp:
        try:
            stamp, found = hash_of(self.root / name)
        except OSError as e:
            raise BundleError(f"{self.root / name} can't be read ({e}); export or copy it again") from e
        if found != digest.sha256:
            raise BundleError(f"{self.root / name} differs from its manifest (sha256); export or copy it again")
        return stamp

    def _remember(self, cached: Checked, seen: Mapping[str, tuple[Stamp, str]]) -> None:
        try:
            cached.remember({name: known for name, known in seen.items() if name in self.manifest.files})
        except OSError as e:
            log.info("%s is hashed at every start: the cache can't be written (%s); set GOG_EDGE_CACHE", self.root, e)


def load_whole(
    given: str | Path | Bundle, make: Callable[[Bundle], _Loaded], close: Callable[[_Loaded], None]
) -> _Loaded:
    """What `make` loads from a bundle, all of it from one and the same: begun again where another took its place.

    Args:
        given: its folder, or an opened bundle, which is not opened again.
        make: reads the bundle's files by their names; whatever it raises counts only if the bundle is still the same.
        close: gets what was loaded from a mixture.

    Raises:
        BundleError: as `Bundle.open`, or another bundle took the place of the one that was given.
    """
    for _ in range(_TRIES):
        bundle = given if isinstance(given, Bundle) else Bundle.open(given)
        try:
            loaded = make(bundle)
        except (GogEdgeError, OSError):
            if not bundle.changed():
                raise
        else:
            if not bundle.changed():
                return loaded
            close(loaded)
        if isinstance(given, Bundle):
            break
    raise BundleError(f"{bundle.root} was replaced while it was loaded; open it again when nothing is exported to it")


def _check_size(root: Path, name: str, digest: FileDigest) -> Stamp:
    file = root / name
    if not file.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root / MANIFEST} names {name!r}, which lies outside of the bundle")
    stamp = _stamp(file)
    if stamp is None or not file.is_file():
        raise BundleError(f"{root} lacks {name}; export or copy it again")
    size = stamp[2]
    if size != digest.size:
        raise BundleError(f"{file} has {size} bytes instead of {digest.size}; export or copy it again")
    return stamp


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def _seal(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


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
    return FileDigest(*sha256_of(path))


class BundleWriter:
    """Builds a bundle in a hidden sibling directory and swaps it in as the last act.

    `root` is where files are written. Leaving the context without `commit` removes everything written. A `target` that
    is a symbolic link stays one: what it leads to is replaced. No file of the old bundle is written to, so whoever has
    it open keeps what was there.
    """

    root: Path

    def __init__(self, target: str | Path) -> None:
        self.target = leftovers.followed(Path(target).absolute())
        self._digests: dict[str, FileDigest] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> BundleWriter:
        try:
            other = self.target.exists() and not (self.target / MANIFEST).is_file()
            if other and (not self.target.is_dir() or any(self.target.iterdir())):
                raise BundleError(f"{self.target} exists and is not a bundle: choose another folder or empty it")
            self.target.parent.mkdir(parents=True, exist_ok=True)
            leftovers.sweep(self.target.parent)
            self.root = self._open.enter_context(leftovers.scratch_folder(self.target))
        except OSError as e:
            raise BundleError(f"can't write beside {self.target}: {e.strerror or e}") from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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
            sync(file)
        manifest = dataclasses.replace(manifest, files=files)
        path = self.root / MANIFEST
        data = encode(manifest)
        path.write_text(json.dumps({**data, SEAL: _seal(data)}, indent=1, ensure_ascii=False) + "\n", "utf-8")
        for new in (path, *(p for p in self.root.rglob("*") if p.is_dir()), self.root):
            sync(new)
        leftovers.swap_in(self.root, self.target)
        sync(self.target.parent)
        bundle = Bundle.open(self.target)
        if bundle.manifest.files == files:  # nobody was faster
            bundle._remember(Checked.of(bundle.root), {n: (bundle.stamps[n], d.sha256) for n, d in files.items()})
        return bundle
