"""One image of a set that somebody else made, as the set names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autolora_eval.files import sha256_bytes, sha256_file

MAX_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Entry:
    """An image, not opened.

    Attributes:
        name: what the set calls it: its path, or its place in the dataset.
        prompt: its prompt, or the name of the folder that stands for it.
        seed: its seed; None where the set does not say.
        path: its file; None if its bytes are given.
        data: its bytes, as an encoded image; None if it has a file.
        load: reads its bytes from where the set has them; None if it has a file or its bytes.
    """

    name: str
    prompt: str | None
    seed: int | None
    path: Path | None = None
    data: bytes | None = None
    load: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """Return the encoded image; of a file larger than `MAX_BYTES` its beginning.

        Raises:
            OSError: there is no such file.
        """
        if self.data is not None:
            return self.data
        if self.load is not None:
            return self.load()
        if self.path is None:
            raise FileNotFoundError(self.name)
        with self.path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)

    def sha256(self) -> str:
        """Return the SHA-256 of the encoded image.

        Raises:
            OSError: there is no such file.
        """
        return sha256_bytes(self.read()) if self.path is None else sha256_file(self.path)


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        place: where it is.
        kind: how it was read, in words.
        entries: its images.
        by_folder: whether prompts are names of folders, not texts.
        unlisted: images beside an imagefolder's metadata that it does not name.
        listing: name of that metadata; empty where there is none.
    """

    place: Path
    kind: str
    entries: list[Entry]
    by_folder: bool = False
    unlisted: list[Entry] = field(default_factory=list)
    listing: str = ""
