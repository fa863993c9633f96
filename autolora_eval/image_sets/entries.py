"""One image of a set that somebody else made, as the set names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Entry:
    """An image, not opened.

    Attributes:
        name: what the set calls it: its path, or its place in the dataset.
        prompt: its prompt, or the name of the folder that stands for it.
        seed: its seed; None where the set does not say.
        path: its file; None if its bytes are given.
        data: its bytes, as an encoded image; None if it has a file.
    """

    name: str
    prompt: str | None
    seed: int | None
    path: Path | None = None
    data: bytes | None = None

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            OSError: there is no such file.
        """
        if self.data is not None:
            return self.data
        if self.path is None:
            raise FileNotFoundError(self.name)
        return self.path.read_bytes()


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        place: where it is.
        kind: how it was read, in words.
        entries: its images.
        by_folder: whether prompts are names of folders, not texts.
    """

    place: Path
    kind: str
    entries: list[Entry]
    by_folder: bool = False
