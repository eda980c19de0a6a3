"""From a reference to a decoded picture: files, parquet, base64, addresses (in a folder, or fetched if allowed)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gog_edge.disk.files import whole_file
from gog_edge.errors import DatasetError, ImageError, SearchError
from gog_edge.evaluation.datasets import parquet_image
from gog_edge.evaluation.samples import ImageRef
from gog_edge.image.frame import DEFAULT_LIMITS, Frame, ImageLimits
from gog_edge.search.base import Deadline
from gog_edge.search.web.page import PageReader

log = logging.getLogger("gog_edge.evaluation")
FETCH_SECONDS = 30.0


class ImageStore:
    """Opens pictures of samples.

    Args:
        roots: folders in which relative files and pictures of addresses (by their last path part) are looked up.
        downloads: folder for fetched pictures; None never contacts anybody.
        reader: how pictures are fetched.
        limits: what is refused.
    """

    def __init__(
        self,
        roots: tuple[Path, ...],
        downloads: Path | None = None,
        reader: PageReader | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self._roots, self._downloads, self._reader, self._limits = roots, downloads, reader, limits

    def open(self, ref: ImageRef) -> Frame:
        """The decoded picture.

        Raises:
            DatasetError: it is nowhere to be found, or can't be fetched.
            ImageError: it can't be decoded.
        """
        if ref.kind == "parquet":
            data = parquet_image(ref.value, ref.row, ref.column, ref.index)
            return Frame.open(data, name=f"{Path(ref.value).name} row {ref.row}", limits=self._limits)
        if ref.kind == "base64":
            try:
                return Frame.open(base64.b64decode(ref.value, validate=False), name="base64 image", limits=self._limits)
            except binascii.Error as e:
                raise DatasetError(f"a base64 picture is damaged ({e})") from e
        if ref.kind == "file":
            return Frame.open(self.path(ref.value), limits=self._limits)
        return self._url(ref.value)

    def path(self, name: str) -> Path:
        """Where the file `name` lies; raises DatasetError if nowhere."""
        candidates = [Path(name)] if Path(name).is_absolute() else []
        candidates += [root / name for root in self._roots] + [root / Path(name).name for root in self._roots]
        for path in candidates:
            if path.is_file():
                return path
        tried = ", ".join(dict.fromkeys(str(r) for r in self._roots))
        raise DatasetError(f"picture {name!r} is not in {tried}; give its folder with --images")

    def _url(self, url: str) -> Frame:
        name = Path(unquote(urlsplit(url).path)).name
        for root in self._roots:
            if name and (root / name).is_file():
                return Frame.open(root / name, limits=self._limits)
        if self._downloads is None:
            raise DatasetError(f"picture {url[:120]} is only an address; give --images, or --download to fetch it")
        kept = self._downloads / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.png"
        try:
            if kept.is_file():
                return Frame.open(kept, limits=self._limits)
        except (OSError, ImageError) as e:
            log.warning("a picture that was fetched before is fetched again (%s)", e)
        try:
            frame = (self._reader or PageReader(pictures=self._limits)).read_image(
                url, deadline=Deadline.after(FETCH_SECONDS)
            )
        except SearchError as e:
            raise DatasetError(f"picture {url[:120]} can't be fetched ({e})") from e
        try:
            with whole_file(kept) as scratch:  # workers share the folder: a half-written file must never be seen
                frame.image().save(scratch, "PNG")
        except OSError as e:
            log.warning("a fetched picture is not kept (%s)", e)
        return frame
