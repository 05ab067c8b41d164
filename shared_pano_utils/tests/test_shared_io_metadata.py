"""Readers refuse with one clear line, writers are atomic, metadata says "full sphere"."""

import errno
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared_pano_utils import imageio, metadata
from shared_pano_utils.pointcloud import write_ply

LOSSLESS = (".png", ".tif", ".bmp")


def smooth_image(height: int = 32, width: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    channels = [rows * 4, columns * 3, 255 - rows * 2 - columns]
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", imageio.IMAGE_SUFFIXES)
def test_write_then_read(tmp_path, suffix):
    array = smooth_image()
    imageio.write_image(tmp_path / f"a{suffix}", array)
    read = imageio.read_image(tmp_path / f"a{suffix}")
    assert read.shape == array.shape
    assert read.dtype == np.uint8
    error = np.abs(read.astype(int) - array).mean()
    # JPEG and WebP at quality 95 on a smooth image.
    assert error == 0 if suffix in LOSSLESS else error < 3


def test_grey_palette_and_alpha_become_rgb(tmp_path):
    grey = smooth_image()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        imageio.read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2)
    )
    rgba = np.dstack([smooth_image(), np.full((32, 64), 7, np.uint8)])
    imageio.write_image(tmp_path / "rgba.png", rgba)
    np.testing.assert_array_equal(imageio.read_image(tmp_path / "rgba.png"), rgba[..., :3])
    colors = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)[np.indices((16, 32)).sum(0) % 2]
    Image.fromarray(colors).quantize(4).save(tmp_path / "palette.png", transparency=b"\x80\xff")
    np.testing.assert_array_equal(imageio.read_image(tmp_path / "palette.png"), colors)


def test_exif_orientation_is_applied(tmp_path):
    array = smooth_image()
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to display"
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        imageio.read_image(tmp_path / "turned.png"), np.rot90(array, k=-1)
    )


def test_read_image_refuses_what_is_no_colour(tmp_path):
    imageio.write_png16(tmp_path / "depth.png", np.zeros((16, 32), np.uint16))
    Image.fromarray(np.zeros((16, 32), np.float32)).save(tmp_path / "float.tif")
    for name in ("depth.png", "float.tif"):
        with pytest.raises(ValueError, match=rf"{name}: pixels are of kind .*read_png16") as caught:
            imageio.read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.9])
def test_truncated_file_is_named(tmp_path, suffix, fraction):
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    path = tmp_path / f"cut{suffix}"
    imageio.write_image(path, noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ValueError, match=rf"cut{suffix}: not a readable image"):
        imageio.read_image(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            imageio.read_image(path)


@pytest.mark.parametrize(
    ("size", "match"),
    [
        ((90, 200), "panorama is 200x90; width must be 2 x height; crop or resize it first"),
        ((1, 2), "panorama is 2x1; the smallest allowed is 32x16"),
        ((15, 30), "panorama is 30x15; the smallest allowed is 32x16"),
    ],
)
def test_read_erp_checks_the_size(tmp_path, size, match):
    imageio.write_image(tmp_path / "a.png", np.zeros((*size, 3), np.uint8))
    with pytest.raises(ValueError, match=match):
        imageio.read_erp(tmp_path / "a.png")
    imageio.write_image(tmp_path / "b.png", np.zeros((16, 32, 3), np.uint8))
    assert imageio.read_erp(tmp_path / "b.png").shape == (16, 32, 3)


def test_png16_keeps_every_value(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(128, 512)
    imageio.write_png16(tmp_path / "d.png", values[..., None], gpano=True)
    np.testing.assert_array_equal(imageio.read_png16(tmp_path / "d.png"), values)
    assert imageio.is_png16(tmp_path / "d.png")
    imageio.write_image(tmp_path / "c.png", smooth_image())
    assert not imageio.is_png16(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png: pixels are of kind RGB, expected 16-bit grey"):
        imageio.read_png16(tmp_path / "c.png")


# ---- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "array", "error", "match"),
    [
        ("a.png", np.zeros((4, 8, 3), np.float32), TypeError, "float32, expected uint8; scale"),
        ("a.png", np.zeros((3, 4, 8), np.uint8), ValueError, "move the channels"),
        ("a.png", np.zeros((4, 8, 2), np.uint8), ValueError, r"expected \(H, W\)"),
        ("a.jpg", np.zeros((4, 8, 4), np.uint8), ValueError, "no alpha"),
        ("a.gif", np.zeros((4, 8, 3), np.uint8), ValueError, "unknown image suffix '.gif'"),
        ("a.png", np.zeros((0, 8, 3), np.uint8), ValueError, "has shape"),
    ],
)
def test_write_image_refuses(tmp_path, name, array, error, match):
    with pytest.raises(error, match=match):
        imageio.write_image(tmp_path / name, array)
    assert files_in(tmp_path) == []


def test_write_png16_refuses(tmp_path):
    with pytest.raises(TypeError, match="uint8, expected uint16"):
        imageio.write_png16(tmp_path / "a.png", smooth_image()[..., 0])
    with pytest.raises(ValueError, match=r"use the suffix \.png"):
        imageio.write_png16(tmp_path / "a.jpg", np.zeros((4, 8), np.uint16))
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        imageio.write_png16(tmp_path / "a.png", np.zeros((4, 8, 3), np.uint16))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_path_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "result.txt"
    target.write_text("old")

    def interrupted():
        with imageio.atomic_path(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_text() == "old"
    assert files_in(tmp_path) == ["result.txt"]


def test_atomic_path_replaces_and_makes_folders(tmp_path):
    target = tmp_path / "a" / "b" / "result.txt"
    for text in ("one", "two"):
        with imageio.atomic_path(target, fsync=True) as temporary:
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "one"
        assert target.read_text() == text
    assert files_in(target.parent) == ["result.txt"]


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def save(_image, path, **_options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        imageio.write_image(tmp_path / "a.png", smooth_image())
    assert files_in(tmp_path) == []


def test_write_json(tmp_path):
    imageio.write_json(tmp_path / "a.json", {"größe": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"größe": [1, 2.5, None]}
    assert text.endswith("}\n")
    assert "größe" in text
    for value, error in (({"a": float("nan")}, ValueError), ({"a": np.zeros(2)}, TypeError)):
        with pytest.raises(error):
            imageio.write_json(tmp_path / "b.json", value)
    assert files_in(tmp_path) == ["a.json"]


def test_write_ply(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 3)).astype(np.float32)
    colors = rng.integers(0, 256, (7, 3), dtype=np.uint8)
    write_ply(tmp_path / "a.ply", points, colors)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 7\n")
    assert len(body) == 7 * 15
    for index in range(7):
        values = struct.unpack_from("<3f3B", body, 15 * index)
        np.testing.assert_array_equal(np.asarray(values[:3], np.float32), points[index])
        assert list(values[3:]) == colors[index].tolist()
    write_ply(tmp_path / "b.ply", points)
    body = (tmp_path / "b.ply").read_bytes().split(b"end_header\n")[1]
    np.testing.assert_array_equal(np.frombuffer(body, "<f4").reshape(7, 3), points)
    points[2, 1] = np.inf
    with pytest.raises(ValueError, match="1 of 7 points are not finite"):
        write_ply(tmp_path / "c.ply", points)


# ---- image metadata -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_gpano_of_a_full_sphere(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    imageio.write_image(path, smooth_image(40, 80), gpano=True)
    assert metadata.read_gpano(path) == {
        "ProjectionType": "equirectangular",
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": "80",
        "FullPanoHeightPixels": "40",
        "CroppedAreaImageWidthPixels": "80",
        "CroppedAreaImageHeightPixels": "40",
        "CroppedAreaLeftPixels": "0",
        "CroppedAreaTopPixels": "0",
    }
    data = path.read_bytes()
    marks = {
        ".png": b"iTXtXML:com.adobe.xmp\0\0\0",
        ".jpg": b"http://ns.adobe.com/xap/1.0/\0",
        ".webp": b"XMP ",
    }
    assert marks[suffix] in data
    imageio.write_image(path, smooth_image())
    assert metadata.read_gpano(path) == {}


def test_gpano_needs_a_format_viewers_read(tmp_path):
    with pytest.raises(ValueError, match="use PNG, JPEG or WebP"):
        imageio.write_image(tmp_path / "a.tif", smooth_image(), gpano=True)


# ---- video metadata -----------------------------------------------------------------------------


def box(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def tiny_movie(data: bytes, *, moov_first: bool, code: str = "I", handler=b"vide") -> bytes:
    """Movie with a video track and an audio track whose two chunks each start in `data`."""
    file_type = box(b"ftyp", b"isom" + bytes(8))

    def track(kind: bytes, entry: bytes, offsets: list[int]) -> bytes:
        table = struct.pack(f">II{len(offsets)}{code}", 0, len(offsets), *offsets)
        description = box(b"stsd", struct.pack(">II", 0, 1) + entry)
        table_box = box(b"stco" if code == "I" else b"co64", table)
        sample_table = box(b"stbl", description + table_box)
        header = box(b"hdlr", bytes(8) + kind + bytes(13))
        return box(
            b"trak", box(b"tkhd", bytes(84)) + box(b"mdia", header + box(b"minf", sample_table))
        )

    def movie(base: int) -> bytes:
        video = box(b"mp4v", bytes(78) + box(b"esds", b"12345678"))
        audio = box(b"mp4a", bytes(28))
        tracks = track(handler, video, [base, base + 8]) + track(b"soun", audio, [base + 4])
        return box(b"moov", box(b"mvhd", bytes(100)) + tracks)

    media = box(b"mdat", data)
    if moov_first:
        base = len(file_type) + len(movie(0)) + 8
        return file_type + movie(base) + media
    return file_type + media + movie(len(file_type) + 8)


def chunks(data: bytes, code: str) -> list[bytes]:
    """Four bytes at every chunk offset of the file, tables found without a box parser."""
    kind = b"stco" if code == "I" else b"co64"
    found, start = [], 0
    while (start := data.find(kind, start) + 4) != 3:
        count = struct.unpack_from(">I", data, start + 4)[0]
        offsets = struct.unpack_from(f">{count}{code}", data, start + 8)
        found += [data[offset : offset + 4] for offset in offsets]
    return found


def nested_sizes_are_consistent(data: bytes) -> bool:
    """Walk the containers down to the projection boxes; every level must be filled exactly."""
    fixed = {b"stsd": 8, b"mp4v": 78, b"sv3d": 0, b"proj": 0}
    containers = {b"moov", b"trak", b"mdia", b"minf", b"stbl", *fixed}
    position = 0
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if size < 8 or position + size > len(data):
            return False
        inside = data[position + 8 + fixed.get(kind, 0) : position + size]
        if kind in containers and not nested_sizes_are_consistent(inside):
            return False
        position += size
    return position == len(data)


@pytest.mark.parametrize("moov_first", [True, False])
@pytest.mark.parametrize("code", ["I", "Q"])
def test_spherical_boxes_keep_the_chunks(moov_first, code):
    original = tiny_movie(b"AAAABBBBCCCCDDDD", moov_first=moov_first, code=code)
    assert chunks(original, code) == [b"AAAA", b"CCCC", b"BBBB"]
    marked = metadata.add_spherical_metadata(original)
    assert chunks(marked, code) == [b"AAAA", b"CCCC", b"BBBB"]
    assert nested_sizes_are_consistent(marked)
    found = metadata.read_spherical_video(marked)
    assert found["stereo_mode"] == 0
    assert found["projection"] == "equi"
    assert found["bounds"] == (0, 0, 0, 0)
    assert "<GSpherical:ProjectionType>equirectangular<" in found["v1_xml"]
    assert marked.count(b"sv3d") == marked.count(b"st3d") == marked.count(b"uuid") == 1
    assert b"esds12345678" in marked
    assert metadata.add_spherical_metadata(marked) == marked


def test_quicktime_terminator_stays_last():
    entry = box(b"mp4v", bytes(78) + box(b"esds", b"12345678"))
    data = tiny_movie(b"AAAABBBBCCCCDDDD", moov_first=False)
    assert data.count(entry) == 1
    tail = b"\0\0\0\0"
    shorter = box(b"mp4v", bytes(78) + box(b"esds", b"1234") + tail)
    marked = metadata.add_spherical_metadata(data.replace(entry, shorter))
    start = marked.index(b"mp4v") - 4
    size = struct.unpack_from(">I", marked, start)[0]
    assert marked[start : start + size].endswith(tail)
    assert metadata.read_spherical_video(marked)["projection"] == "equi"


def test_damaged_offset_table_is_refused():
    data = tiny_movie(b"AAAABBBBCCCC", moov_first=True)
    count = data.index(b"stco") + 8
    broken = data[:count] + struct.pack(">I", 1000) + data[count + 4 :]
    with pytest.raises(ValueError, match="1000 chunk offsets"):
        metadata.add_spherical_metadata(broken)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "0 moov boxes"),
        (b"not a movie, just text", "damaged, truncated or no MP4"),
        (tiny_movie(b"AAAABBBBCCCC", moov_first=True)[:-10], "damaged"),
        (tiny_movie(b"AAAABBBBCCCC", moov_first=True, handler=b"soun"), "no video track"),
        (tiny_movie(b"AAAABBBBCCCC", moov_first=True) + box(b"moof"), "fragmented"),
    ],
)
def test_spherical_boxes_refuse(data, match):
    with pytest.raises(ValueError, match=match):
        metadata.add_spherical_metadata(data)


def test_spherical_video_file_plays_as_before(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8, (64, 32))
    if not writer.isOpened():
        pytest.skip("this OpenCV build has no mp4v encoder")
    for shift in range(4):
        writer.write(np.roll(smooth_image(), 8 * shift, 1))
    writer.release()

    def frames(name: Path) -> np.ndarray:
        capture = cv2.VideoCapture(str(name))
        read = [capture.read()[1] for _ in range(4)]
        capture.release()
        return np.stack(read)

    before = frames(path)
    metadata.write_spherical_video(path, tmp_path / "b.mp4")
    np.testing.assert_array_equal(frames(tmp_path / "b.mp4"), before)
    assert metadata.read_spherical_video(path.read_bytes()) == {}
    metadata.write_spherical_video(path)
    assert path.read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert metadata.read_spherical_video(path.read_bytes())["projection"] == "equi"
    assert files_in(tmp_path) == ["a.mp4", "b.mp4"]

    (tmp_path / "broken.mp4").write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"broken\.mp4: .*damaged"):
        metadata.write_spherical_video(tmp_path / "broken.mp4")
    with pytest.raises(FileNotFoundError, match="no such file"):
        metadata.write_spherical_video(tmp_path / "none.mp4")


def test_decode_image_names_the_source():
    buffer = io.BytesIO()
    Image.fromarray(smooth_image()).save(buffer, "PNG")
    np.testing.assert_array_equal(imageio.decode_image(buffer.getvalue()), smooth_image())
    with pytest.raises(ValueError, match="upload: not a readable image"):
        imageio.decode_image(b"no image", "upload")
