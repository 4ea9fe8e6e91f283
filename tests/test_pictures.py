import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from pipeline.errors import DataError, InputError
from pipeline.labels import to_class_indices
from pipeline.pictures import (
    page_shapes,
    read_page,
    read_pages,
    write_labels,
    write_probabilities,
)
from tests.conftest import real

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_a_page_of_a_stack_is_rows_by_columns(tmp_path, compression):
    tifffile.imwrite(
        tmp_path / "s.tif", np.stack([RAMP, RAMP + 100]), compression=compression, photometric="minisblack"
    )
    assert page_shapes(tmp_path / "s.tif") == [(3, 4), (3, 4)]
    np.testing.assert_array_equal(read_page(tmp_path / "s.tif", 1), RAMP[None] + 100)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_channels_come_first(tmp_path, planar):
    colours = np.stack([RAMP, RAMP + 50, RAMP + 100])
    stored = colours.transpose(1, 2, 0) if planar == "contig" else colours
    tifffile.imwrite(tmp_path / "c.tif", stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_page(tmp_path / "c.tif"), colours)
    Image.fromarray(np.ascontiguousarray(colours.transpose(1, 2, 0))).save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_page(tmp_path / "c.png"), colours)


def test_a_jpeg_is_grey_or_rgb_as_it_is_stored(tmp_path):
    colours = np.zeros((8, 16, 3), np.uint8)
    colours[:, 8:] = 240, 20, 40
    camera = Image.Exif()
    camera[ExifTags.Base.Orientation] = 6  # turn by 90 degrees to look at
    Image.fromarray(colours).save(tmp_path / "a.jpg", exif=camera)
    page = read_page(tmp_path / "a.jpg")
    assert page.shape == (3, 8, 16)
    assert page_shapes(tmp_path / "a.jpg") == [(8, 16)]
    np.testing.assert_allclose(page[:, 4, 12], [240, 20, 40], atol=4)
    Image.fromarray(colours[..., 0]).save(tmp_path / "b.jpeg")
    assert read_page(tmp_path / "b.jpeg").shape == (1, 8, 16)


def test_a_picture_of_another_kind_is_refused_by_name(tmp_path):
    Image.new("CMYK", (16, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: mode 'CMYK' is not supported; save it as grey, RGB or RGBA"):
        read_page(tmp_path / "a.jpg")


def test_a_png_under_the_name_of_a_jpeg_has_no_transparency(tmp_path):
    see_through = np.stack([RAMP, RAMP, RAMP, RAMP * 20], axis=-1)
    Image.fromarray(see_through).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is transparent in places"):
        read_page(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_page(tmp_path / "a.jpg"), np.stack([RAMP] * 3))


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_sixteen_bits_are_refused_rather_than_halved(tmp_path, channels):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    pixels = zlib.compress(b"\0" + b"\x01\x02" * channels)  # the row's filter, then its pixel
    content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[[1] * channels]]  # what Pillow makes of 0x0102
    with pytest.raises(InputError, match=r"a\.png: its colours are of 16 bits, .* save it as 8-bit PNG or as TIFF"):
        read_page(tmp_path / "a.png")


def test_sixteen_bits_survive(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 1000).save(tmp_path / "a.png")
    assert read_page(tmp_path / "a.png").max() == 11_000


def test_declared_values_become_class_indices():
    raw = np.array([[[0, 255], [255, 7]]])
    mapped = to_class_indices(raw, {"255": 0, "0": 1, "7": 2}, "x")
    assert mapped.tolist() == [[[1, 0], [0, 2]]]
    assert mapped.dtype == np.uint8


def test_an_undeclared_255_never_passes():
    raw = np.array([[[0, 1], [255, 254]]], np.uint8)
    with pytest.raises(DataError, match=r"p1\.tif: raw label values 254, 255 are not declared \(declared: 0, 1\)"):
        to_class_indices(raw, {"0": 0, "1": 1}, "p1.tif")


def test_a_colour_label_is_refused():
    with pytest.raises(DataError, match="a label must have one channel, this has 3"):
        to_class_indices(np.zeros((3, 2, 2)), {"0": 0}, "x")


def test_labels_come_back_from_disk_as_written(tmp_path):
    for name in ("a.tif", "a.png"):
        write_labels([RAMP], tmp_path / name)
        np.testing.assert_array_equal(read_page(tmp_path / name), RAMP[None])
    write_labels((RAMP + n for n in range(5)), tmp_path / "stack.tif")
    assert [page.max() for page in read_pages(tmp_path / "stack.tif")] == [11, 12, 13, 14, 15]


def test_the_resolution_of_the_image_is_the_label_maps(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP, resolution=(25400, 25400), resolutionunit="INCH")
    write_labels([RAMP], tmp_path / "b.tif", tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as written:
        assert written.pages.first.resolution == (25400, 25400)
        assert written.pages.first.resolutionunit == tifffile.RESUNIT.INCH


def test_probabilities_keep_classes_apart(tmp_path):
    probabilities = np.stack([RAMP, 1 - RAMP / 20, RAMP / 7]).astype(np.float32)
    write_probabilities([probabilities, probabilities / 2], tmp_path / "p.tif")
    np.testing.assert_array_equal(read_page(tmp_path / "p.tif", 1), probabilities / 2)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def pages():
        yield RAMP
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_labels(pages(), tmp_path / "a.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.tif", b"", r"a\.tif: cannot be decoded"),
        ("a.tif", b"not a tiff at all", r"a\.tif: cannot be decoded"),
        ("a.png", b"nor a png", r"a\.png: not a readable \.png file"),
        ("a.jpg", b"\xff\xd8\xff", r"a\.jpg: not a readable \.jpg file"),
        (
            "a.gif",
            b"",
            r"a\.gif: not an image this reads; it reads \.tif, \.tiff, \.png, \.jpg, \.jpeg and DICOM folders",
        ),
        (None, b"", r"a\.tif: no such file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, sentence):
    path = tmp_path / (name or "a.tif")
    if name:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_page(path)


def test_a_stack_that_was_cut_short_is_no_shorter_stack(tmp_path):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(9):
            writer.write(RAMP, contiguous=False)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match="damaged or cut short"):
        page_shapes(path)


def test_a_stack_behind_one_header_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", np.stack([RAMP] * 5), photometric="minisblack", imagej=True, truncate=True)
    with pytest.raises(InputError, match="5 images behind one page header"):
        page_shapes(tmp_path / "s.tif")


def test_pages_are_asked_for_by_number(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", np.stack([RAMP, RAMP]), photometric="minisblack")
    with pytest.raises(InputError, match="a stack of 2 pages; say which page"):
        read_page(tmp_path / "s.tif")
    with pytest.raises(InputError, match=r"has 2 pages, page 2 was asked for"):
        read_page(tmp_path / "s.tif", 2)


def test_a_real_brain_slice_has_three_channels():
    path = sorted(real("lgg_kaggle3m").glob("*/*_10.tif"))[0]
    assert read_page(path).shape == (3, 256, 256)
