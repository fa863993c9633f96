"""Validates images that were made elsewhere, and lists every issue of a set.

A scored set is complete in the report: each image is measured, or listed with the reason.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps

from autolora_eval._files import Json
from autolora_eval.generation.image_listing import ImageRecord
from autolora_eval.generation.image_sets import Matching
from autolora_eval.runs.columns import write_csv
from autolora_eval.runs.images import MAX_BYTES, ImageError, as_rgb, opened, single_colour
from autolora_eval.runs.manifest import ImageJob

_CONVERTED_MODES = ("CMYK", "YCbCr", "LAB", "HSV")
# 32-bit integers and floats: the file does not say which values are black and white.
_UNSCALED_MODES = ("I", "F")
_TURNED = range(2, 9)  # of EXIF orientations
_PROFILE = "icc_profile"
# sRGB profiles differ in name and rounding: by at most this much of 255.
_SAME_COLOUR = 2
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")

IssueKind = Literal[
    "missing", "unusable", "extra", "duplicate", "wrong_size", "constant", "converted"
]
ISSUES: dict[IssueKind, str] = {
    "missing": "in the benchmark, but not in the set",
    "unusable": "cannot be opened; not scored",
    "extra": "not in the benchmark; not scored",
    "duplicate": "the same pixels as another image of the set; scored",
    "wrong_size": "not the size of the model; scored",
    "constant": "a single colour, such as the black image of a safety checker; scored",
    "converted": "not an upright, opaque 8-bit sRGB image; scored after conversion",
}


@dataclass(frozen=True)
class ImageInfo:
    """What an image shows and how its file holds it.

    Attributes:
        size: (width, height) in pixels; None if the image cannot be used.
        pixels_hash: SHA-256 of the size and the RGB pixels: equal for the same picture in
            different files. Empty if the image cannot be used.
        colour: the RGB value of an image with a single colour; None for any other.
        converted: what the conversion to 8-bit RGB changed, in words; empty if nothing.
        problem: why the image cannot be used; None if it can.
    """

    size: tuple[int, int] | None
    pixels_hash: str = ""
    colour: tuple[int, ...] | None = None
    converted: str = ""
    problem: str | None = None


def validate_image(data: bytes) -> ImageInfo:
    """Decode an image and describe it.

    Its `problem` is set if the image is corrupt, is larger than 100 megapixels or 256 MiB, or has
    pixels without a known range.
    """
    if len(data) > MAX_BYTES:
        return ImageInfo(None, problem=f"too_large ({len(data)} bytes)")
    try:
        image, converted = _decode(data)
    except ImageError as error:
        return ImageInfo(None, problem=str(error))
    return ImageInfo(image.size, _pixels_hash(image), single_colour(image), converted)


def _pixels_hash(image: Image.Image) -> str:
    """Return the hash of size and pixels, a strip at a time: a large image is held only once."""
    width, height = image.size
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    for top in range(0, height, 256):
        digest.update(image.crop((0, top, width, min(top + 256, height))).tobytes())
    return digest.hexdigest()


def decode_rgb(data: bytes) -> Image.Image:
    """Return the upright 8-bit RGB image of bytes that `validate_image` found no problem with."""
    return _decode(data)[0]


def _decode(data: bytes) -> tuple[Image.Image, str]:
    """Return an upright 8-bit RGB image, and what the conversion changed, in words.

    Pillow refuses long texts in a PNG, and takes some for properties of the image, such as one
    that is named "transparency". If it fails, the image is read without its texts.

    Raises:
        ImageError: if the image cannot be used.
    """
    try:
        with opened(io.BytesIO(data)) as encoded:
            if encoded.mode in _UNSCALED_MODES:
                raise ImageError(f"unknown_range (mode {encoded.mode})")
            converted = list(_conversions(encoded))
            return _as_rgb(encoded, converted), ", ".join(converted)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders of Pillow raise many types for a damaged file
        without_text = _without_text(data)
        if without_text == data:
            raise ImageError("corrupt_image") from error
    return _decode(without_text)


def _without_text(data: bytes) -> bytes:
    """Return a PNG without its text chunks; anything else as it is."""
    if not data.startswith(_PNG):
        return data
    kept, start = [_PNG], len(_PNG)
    while start < len(data):
        length = int.from_bytes(data[start : start + 4])
        end = start + 12 + length  # with the length, the name and the checksum
        if data[start + 4 : start + 8] not in _TEXT_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _as_rgb(image: Image.Image, converted: list[str]) -> Image.Image:
    """Return an upright sRGB image, and append what its colour profile changed."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    upright = ImageOps.exif_transpose(image) if _is_turned(image) else image
    found = _in_srgb(upright)
    if found is None:
        return as_rgb(upright)
    converted.append(f"colours converted from the profile '{found[1]}' to sRGB")
    return found[0]


def _in_srgb(image: Image.Image) -> tuple[Image.Image, str] | None:
    """Return an image with an ICC profile in sRGB, and the name of the profile.

    Returns:
        None if the image has no profile, or one that is damaged or changes no colour visibly.
    """
    if not image.info.get(_PROFILE):
        return None
    plain = image.convert("L") if image.mode == "LA" else image
    plain = plain if plain.mode in ("L", "CMYK") else as_rgb(plain)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info[_PROFILE]))
        name = " ".join(ImageCms.getProfileName(profile).split())
        srgb = ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(plain, profile, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # damaged, or the profile of another mode
        return None
    assert found is not None
    del found.info[_PROFILE]  # contains the time: each copy would have other bytes
    if plain.mode != "CMYK":
        change = np.asarray(ImageChops.difference(found, as_rgb(plain)))
        if change.max() <= _SAME_COLOUR:
            return None
    return found, name


def _is_turned(image: Image.Image) -> bool:
    """Return True if an image has an EXIF orientation. Damaged EXIF is like none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception:  # Pillow raises many types for damaged EXIF
        return False


def _conversions(image: Image.Image) -> Iterator[str]:
    """Yield what an image loses or changes when it becomes upright 8-bit RGB."""
    if image.mode.startswith("I;16"):
        yield "16 bits per channel, scaled to 8"
        return
    # Pillow opens 16-bit RGB as 8-bit RGB: only the raw mode of the decoder shows it.
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        yield "16 bits per channel, cut to 8"
    if image.mode in _CONVERTED_MODES:
        yield f"{image.mode} converted to RGB"
    if _is_turned(image):
        yield "rotated by its EXIF orientation"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        yield "transparency dropped"
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1:
        yield f"the first of {n_frames} frames"
        image.seek(0)


class ImageIssue(NamedTuple):
    """One issue of one image; a row of `image_sets/<cell>.csv`.

    Attributes:
        issue: a key of `ISSUES`.
        prompt: the prompt of the image; for an extra image, the name that the set uses.
        file: its name in the set; empty if it is missing.
    """

    issue: IssueKind
    prompt: str | None
    seed: int | None
    file: str
    detail: str


def find_issues(
    matching: Matching, infos: Mapping[ImageJob, ImageInfo], size: tuple[int, int]
) -> list[ImageIssue]:
    """Return all issues of a set, in the order of `ISSUES`; the model makes images of `size`."""
    issues = [ImageIssue("missing", job.prompt, job.seed, "", "") for job in matching.missing]
    for record, reason in matching.extra:
        issues.append(ImageIssue("extra", record.prompt, record.seed, record.name, reason))
    for job, info in infos.items():
        name = matching.found[job].name
        for issue, detail in _issues_of_one(info, size):
            issues.append(ImageIssue(issue, job.prompt, job.seed, name, detail))
    issues += _duplicates(matching.found, infos)
    order = list(ISSUES)
    return sorted(issues, key=lambda row: order.index(row.issue))


def _issues_of_one(info: ImageInfo, size: tuple[int, int]) -> Iterator[tuple[IssueKind, str]]:
    if info.size is None:
        yield "unusable", info.problem or ""
        return
    if info.size != size:
        got, wanted = (f"{width} × {height}" for width, height in (info.size, size))
        yield "wrong_size", f"{got} pixels, the model makes {wanted}"
    if info.colour is not None:
        yield "constant", "RGB {} {} {}".format(*info.colour)
    if info.converted:
        yield "converted", info.converted


def _duplicates(
    found: Mapping[ImageJob, ImageRecord], infos: Mapping[ImageJob, ImageInfo]
) -> Iterator[ImageIssue]:
    groups: dict[str, list[ImageJob]] = defaultdict(list)
    for job, info in infos.items():
        if info.pixels_hash:
            groups[info.pixels_hash].append(job)
    for first, *others in groups.values():
        detail = f"same pixels as {found[first].name} ('{first.prompt}', seed {first.seed})"
        for job in others:
            yield ImageIssue("duplicate", job.prompt, job.seed, found[job].name, detail)


def count_issues(issues: Iterable[ImageIssue]) -> Json:
    """Return the number of images by issue, in the order of `ISSUES`, zeros included."""
    counts = Counter(row.issue for row in issues)
    return {issue: counts[issue] for issue in ISSUES}


def write_issues(path: Path, issues: list[ImageIssue]) -> None:
    """Write the issues of a set as a CSV file, one row per issue."""
    import pandas as pd

    frame = pd.DataFrame(issues, columns=list(ImageIssue._fields))
    frame["seed"] = frame["seed"].astype("Int64")
    write_csv(path, frame)
