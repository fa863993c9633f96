"""Every image of a set is measured, or reported with the reason; conversions are reported."""

import zlib
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from image_files import encoded, jobs, noise, picture, record, save
from PIL import Image, ImageCms, ImageFile

from autolora_eval.generation.image_sets import ImageSet, match
from autolora_eval.generation.image_validation import (
    ImageIssue,
    count_issues,
    decode_rgb,
    find_issues,
    validate_image,
)
from autolora_eval.runs.images import ImageError, open_image

pytestmark = pytest.mark.model


def issues(*images: bytes, size: tuple[int, int] = (8, 8)) -> list[ImageIssue]:
    """The issues of a listing of images of prompts a, b, c, …."""
    asked = jobs(*"abcdef"[: len(images)])
    records = [
        record("one.png", job.prompt, 0, data) for job, data in zip(asked, images, strict=True)
    ]
    matching = match(ImageSet(Path("set"), "listing", records), asked)
    infos = {job: validate_image(r.read()) for job, r in matching.found.items()}
    return find_issues(matching, infos, size)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def test_an_intact_image_has_no_issue():
    assert issues(encoded(picture(1)), encoded(picture(2), "BMP")) == []


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(picture(1))[:-40]])
def test_a_corrupt_image_is_unusable(data):
    assert [(row.issue, row.detail) for row in issues(data)] == [("unusable", "corrupt_image")]


def test_constant_images_and_other_sizes_are_reported_and_measured():
    found = issues(encoded(Image.new("RGB", (4, 4), (7, 8, 9))))
    assert [(row.issue, row.detail) for row in found] == [
        ("wrong_size", "4 × 4 pixels, the model makes 8 × 8"),
        ("constant", "RGB 7 8 9"),
    ]
    assert count_issues(found) == {
        **{"missing": 0, "unusable": 0, "extra": 0, "duplicate": 0},
        **{"wrong_size": 1, "constant": 1, "converted": 0},
    }


def test_equal_pixels_in_different_files_are_duplicates_and_corrupt_files_are_not():
    found = issues(encoded(picture(1)), encoded(picture(1), "BMP"), encoded(picture(1)), b"", b"")
    assert [(row.prompt, row.detail) for row in found if row.issue == "duplicate"] == [
        ("b", "same pixels as one.png ('a', seed 0)"),
        ("c", "same pixels as one.png ('a', seed 0)"),
    ]


def test_equal_bytes_of_pixels_in_another_shape_are_not_duplicates():
    found = issues(*(encoded(Image.new("RGB", size, (1, 1, 1))) for size in ((2, 8), (8, 2))))
    assert "duplicate" not in {row.issue for row in found}


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# sRGB with its red and green primaries exchanged.
EXCHANGED = SRGB.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_another_profile_are_converted_to_srgb_and_reported(mode):
    data = encoded(Image.new("RGB", (8, 8), (0, 255, 0)).convert(mode), icc_profile=EXCHANGED)
    info = validate_image(data)
    assert info.converted == "colours converted from the profile 'sRGB built-in' to sRGB"
    image = decode_rgb(data)
    assert np.abs(np.subtract(image.getpixel((0, 0)), (255, 0, 0))).max() <= 1
    assert info.colour == image.getpixel((0, 0))
    assert "icc_profile" not in image.info


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", SRGB), ("L", SRGB), ("L", EXCHANGED), ("RGB", EXCHANGED[:200]), ("RGB", b"?")],
)
def test_a_profile_of_srgb_of_another_mode_or_damaged_changes_nothing(mode, profile):
    image = picture(1).convert(mode)
    data = encoded(image, icc_profile=profile)
    assert validate_image(data).converted == ""
    assert np.array_equal(decode_rgb(data), image.convert("RGB"))


def test_sixteen_bit_grey_is_scaled_instead_of_clipped():
    deep = noise(8, 8, kind=np.uint16)
    data = encoded(Image.fromarray(deep))
    assert validate_image(data).converted == "16 bits per channel, scaled to 8"
    grey = np.asarray(decode_rgb(data))[..., 0]
    assert np.array_equal(grey, np.round(deep / 257).astype(np.uint8))


def test_sixteen_bit_rgb_is_reported():
    """Pillow opens it as 8-bit RGB."""
    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    head = chunk(b"IHDR", pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    deep = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert validate_image(deep).converted == "16 bits per channel, cut to 8"


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG of `picture(1)` with one more chunk behind its header."""
    png, end = encoded(picture(1)), 33
    return png[:end] + chunk(kind, data) + png[end:]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"tEXt", b"exif\0" + rb"b'Exif\x00\x00MM'"),
        (b"eXIf", b"damaged"),
        (b"tEXt", b"transparency\0of the soul"),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(1_200_000))),
        (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(100_000_000), 9)),
    ],
    ids=["exif as text", "damaged exif", "name of a property", "1.2 MB of text", "bomb"],
)
def test_no_text_makes_a_healthy_picture_corrupt(kind, data):
    image = with_chunk(kind, data)
    assert issues(image) == []
    assert np.array_equal(np.asarray(decode_rgb(image)), np.asarray(picture(1)))


def test_a_torn_picture_with_a_long_text_is_corrupt():
    data = with_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(1_200_000)))
    assert validate_image(data[:-40]).problem == "corrupt_image"


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_unusable(kind):
    data = encoded(Image.fromarray(noise(8, 8).astype(kind)), "TIFF")
    assert "unknown_range" in str(validate_image(data).problem)


def test_exif_orientation_is_applied():
    image = Image.fromarray(noise(4, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "PNG", exif=exif)
    assert validate_image(data).size == (4, 8)
    assert validate_image(data).converted == "rotated by its EXIF orientation"
    assert np.array_equal(np.asarray(decode_rgb(data)), np.rot90(np.asarray(image), -1))
    assert not decode_rgb(data).getexif().get(0x0112)


def test_transparency_further_frames_and_other_colour_spaces_are_reported():
    clear = Image.fromarray(noise(8, 8, 4))
    opaque = clear.copy()
    opaque.putalpha(255)
    second = [Image.new("RGB", (8, 8))]
    cases = {
        "transparency dropped": encoded(clear),
        "the first of 2 frames": encoded(picture(0), save_all=True, append_images=second),
        "CMYK converted to RGB": encoded(Image.fromarray(noise(4, 4, 4), "CMYK"), "JPEG"),
    }
    for converted, data in cases.items():
        assert validate_image(data).converted == converted
    for data in (encoded(opaque), encoded(picture(0).quantize(16)), encoded(picture(0), "JPEG")):
        assert validate_image(data).converted == ""
    assert [(row.issue, row.detail) for row in issues(encoded(clear))] == [
        ("converted", "transparency dropped")
    ]


@pytest.mark.parametrize("raised", [RuntimeError, NotImplementedError, AttributeError, KeyError])
def test_any_error_of_a_decoder_means_a_corrupt_image(tmp_path, monkeypatch, raised):
    save(tmp_path / "0.png", 0)

    def fail(*_: object, **__: object) -> None:
        raise raised("torn")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert validate_image((tmp_path / "0.png").read_bytes()).problem == "corrupt_image"
    with pytest.raises(ImageError, match="corrupt_image"):
        open_image(tmp_path / "0.png")


@pytest.mark.filterwarnings("error")
def test_a_large_image_is_opened_without_a_warning(tmp_path, monkeypatch):
    save(tmp_path / "0.png", 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert validate_image((tmp_path / "0.png").read_bytes()).problem is None
    assert np.asarray(open_image(tmp_path / "0.png")).shape == (8, 8, 3)
