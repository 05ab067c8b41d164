"""Metadata by which photo and video players recognise a full-sphere panorama.

Images carry Google's photo-sphere XMP ("GPano"); MP4 videos carry the spherical-video metadata
in both published forms: V1 (an XML `uuid` box in the track) and V2 (`st3d` and `sv3d` boxes in
the sample entry). The MP4 code edits boxes in memory and never touches the coded frames.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# ---- images -------------------------------------------------------------------------------------

_GPANO_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
_PNG_XMP_KEY = "XML:com.adobe.xmp"


def gpano_xmp(height: int, width: int) -> str:
    """XMP packet that declares an image of `height` x `width` pixels to cover the full sphere."""
    values = {
        "ProjectionType": "equirectangular",
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": width,
        "FullPanoHeightPixels": height,
        "CroppedAreaImageWidthPixels": width,
        "CroppedAreaImageHeightPixels": height,
        "CroppedAreaLeftPixels": 0,
        "CroppedAreaTopPixels": 0,
    }
    attributes = " ".join(f'GPano:{name}="{value}"' for name, value in values.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:GPano="{_GPANO_NAMESPACE}" {attributes}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def gpano_save_options(image_format: str, height: int, width: int) -> dict[str, Any]:
    """Keyword arguments for `PIL.Image.save` that store `gpano_xmp` in the file.

    Args:
        image_format: "PNG" (iTXt chunk), "JPEG" (APP1 segment) or "WEBP" (XMP chunk).
        height: rows of the panorama.
        width: columns of the panorama.

    Raises:
        ValueError: a format without a place that viewers read.
    """
    xmp = gpano_xmp(height, width)
    if image_format in ("JPEG", "WEBP"):
        return {"xmp": xmp.encode("utf-8")}
    if image_format != "PNG":
        raise ValueError(
            f"GPano metadata cannot be stored in {image_format}; use PNG, JPEG or WebP"
        )
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(_PNG_XMP_KEY, xmp)
    return {"pnginfo": info}


def read_gpano(path: str | Path) -> dict[str, str]:
    """Return the GPano properties of an image, empty when it has none."""
    from PIL import Image

    with Image.open(path) as image:
        xmp = image.info.get(_PNG_XMP_KEY) or image.info.get("xmp") or b""
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp
    attributes = re.findall(r'GPano:(\w+)\s*=\s*"([^"]*)"', text)
    elements = re.findall(r"<GPano:(\w+)>([^<]*)</GPano:", text)
    return dict(attributes + elements)


# ---- videos -------------------------------------------------------------------------------------

_V1_UUID = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")
_SOFTWARE = "shared_pano_utils"
# A VisualSampleEntry has 78 bytes of fixed fields between its header and its child boxes
# (ISO/IEC 14496-12, 12.1.3).
_SAMPLE_ENTRY_FIELDS = 78
_NESTED = frozenset({b"mdia", b"minf", b"stbl"})


class _Box(NamedTuple):
    kind: bytes
    header: bytes
    payload: bytes
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.header) + len(self.payload)


def write_spherical_video(source: str | Path, target: str | Path | None = None) -> None:
    """Mark an MP4 file as monoscopic equirectangular 360-degree video (metadata V1 and V2).

    Args:
        source: MP4 file whose frames are full-sphere panoramas.
        target: where to write; None rewrites `source`. The write is atomic.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: `source` is no MP4 with a video track, is damaged, or is fragmented.
    """
    from .imageio import atomic_path

    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        marked = add_spherical_metadata(source.read_bytes())
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    with atomic_path(target or source) as temporary:
        temporary.write_bytes(marked)


def add_spherical_metadata(data: bytes) -> bytes:
    """Insert the spherical boxes into the bytes of an MP4 file; present ones are replaced.

    The `moov` box grows; chunk offsets (`stco`, `co64`) of data behind it are moved along.

    Source: Google's Spherical Video RFC and Spherical Video V2 RFC.

    Raises:
        ValueError: not an MP4 with a video track, damaged, or fragmented.
    """
    boxes = list(_boxes(data))
    movies = [box for box in boxes if box.kind == b"moov"]
    if len(movies) != 1:
        raise ValueError(f"the file has {len(movies)} moov boxes, expected one; is it an MP4?")
    if any(box.kind == b"moof" for box in boxes):
        raise ValueError("the file is a fragmented MP4; remux it first (ffmpeg -c copy)")
    movie = movies[0]
    if not any(_is_video(box) for box in _boxes(movie.payload) if box.kind == b"trak"):
        raise ValueError("the file has no video track; expected an MP4 video")
    growth = len(_rebuild_movie(movie, 0)) - (movie.end - movie.start)
    marked = _rebuild_movie(movie, growth)
    return data[: movie.start] + marked + data[movie.end :]


def read_spherical_video(data: bytes) -> dict[str, Any]:
    """Return what the first video track of an MP4 says about its projection.

    Returns:
        Empty for an ordinary video; otherwise some of "v1_xml" (str), "stereo_mode" (0 = mono),
        "projection" ("equi", "cbmp" or "mshp") and "bounds" (top, bottom, left, right as 0.32
        fixed point; all 0 = full sphere).
    """
    movie = next((box for box in _boxes(data) if box.kind == b"moov"), None)
    tracks = list(_boxes(movie.payload)) if movie else []
    track = next((box for box in tracks if box.kind == b"trak" and _is_video(box)), None)
    if track is None:
        return {}
    found: dict[str, Any] = {}
    for box in _boxes(track.payload):
        if box.kind == b"uuid" and box.payload.startswith(_V1_UUID):
            found["v1_xml"] = box.payload[16:].decode("utf-8")
    for entry in _boxes(_find(track, b"mdia", b"minf", b"stbl", b"stsd").payload[8:]):
        for box in _boxes(entry.payload[_SAMPLE_ENTRY_FIELDS:]):
            if box.kind == b"st3d":
                found["stereo_mode"] = box.payload[4]
            elif box.kind == b"sv3d":
                projection = list(_boxes(_find(box, b"proj").payload))[-1]
                found["projection"] = projection.kind.decode("ascii")
                if projection.kind == b"equi":
                    found["bounds"] = struct.unpack(">4I", projection.payload[4:20])
    return found


def _boxes(data: bytes) -> Iterator[_Box]:
    """Split a run of ISO boxes; the last may be a 4-byte terminator as QuickTime writes it."""
    start = 0
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        header_size = 8
        if size == 1 and start + 16 <= len(data):
            size = struct.unpack_from(">Q", data, start + 8)[0]
            header_size = 16
        elif size == 0:
            size = len(data) - start
        if size < header_size or start + size > len(data):
            raise ValueError(
                f"box {kind!r} of {size} bytes does not fit into the {len(data) - start} bytes "
                "left; the file is damaged, truncated or no MP4"
            )
        body = start + header_size
        yield _Box(kind, data[start:body], data[body : start + size], start)
        start += size


def _make_box(kind: bytes, payload: bytes) -> bytes:
    if len(payload) + 8 >= 2**32:
        return struct.pack(">I4sQ", 1, kind, len(payload) + 16) + payload
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def _find(box: _Box, *path: bytes) -> _Box:
    for kind in path:
        child = next((child for child in _boxes(box.payload) if child.kind == kind), None)
        if child is None:
            raise ValueError(f"box {box.kind!r} has no {kind!r}; the file is damaged")
        box = child
    return box


def _is_video(track: _Box) -> bool:
    return _find(track, b"mdia", b"hdlr").payload[8:12] == b"vide"


def _rebuild_movie(movie: _Box, growth: int) -> bytes:
    def children(payload: bytes, *, is_video: bool) -> bytes:
        return b"".join(rebuild(box, is_video=is_video) for box in _boxes(payload))

    def rebuild(box: _Box, *, is_video: bool) -> bytes:
        if box.kind == b"trak" and _is_video(box):
            kept = b"".join(
                rebuild(child, is_video=True)
                for child in _boxes(box.payload)
                if not (child.kind == b"uuid" and child.payload.startswith(_V1_UUID))
            )
            return _make_box(b"trak", kept + _v1_box())
        if box.kind == b"trak" or box.kind in _NESTED:
            return _make_box(box.kind, children(box.payload, is_video=is_video))
        if box.kind == b"stsd" and is_video:
            entries = b"".join(_mark_sample_entry(entry) for entry in _boxes(box.payload[8:]))
            return _make_box(b"stsd", box.payload[:8] + entries)
        if box.kind in (b"stco", b"co64"):
            return _make_box(box.kind, _moved_offsets(box, movie.start, growth))
        return box.header + box.payload

    return _make_box(b"moov", children(movie.payload, is_video=False))


def _mark_sample_entry(entry: _Box) -> bytes:
    fields, rest = entry.payload[:_SAMPLE_ENTRY_FIELDS], entry.payload[_SAMPLE_ENTRY_FIELDS:]
    present = list(_boxes(rest))
    terminator = rest[present[-1].end :] if present else rest
    kept = [box.header + box.payload for box in present if box.kind not in (b"st3d", b"sv3d")]
    return _make_box(entry.kind, b"".join([fields, *kept, _v2_boxes(), terminator]))


def _moved_offsets(table: _Box, movie_start: int, growth: int) -> bytes:
    """Add `growth` to the chunk offsets of a stco/co64 payload that lie behind the movie box."""
    code = "I" if table.kind == b"stco" else "Q"
    count = int.from_bytes(table.payload[4:8], "big")
    if 8 + count * (4 if code == "I" else 8) > len(table.payload):
        raise ValueError(f"{count} chunk offsets do not fit into their box; the file is damaged")
    offsets = struct.unpack_from(f">{count}{code}", table.payload, 8)
    moved = [offset + growth if offset > movie_start else offset for offset in offsets]
    if code == "I" and moved and max(moved) >= 2**32:
        raise ValueError("chunk offsets pass 4 GiB; remux the video with 64-bit offsets first")
    packed = struct.pack(f">{count}{code}", *moved)
    return table.payload[:8] + packed + table.payload[8 + len(packed) :]


def _v1_box() -> bytes:
    xml = (
        '<?xml version="1.0"?><rdf:SphericalVideo '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        'xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/">'
        "<GSpherical:Spherical>true</GSpherical:Spherical>"
        "<GSpherical:Stitched>true</GSpherical:Stitched>"
        f"<GSpherical:StitchingSoftware>{_SOFTWARE}</GSpherical:StitchingSoftware>"
        "<GSpherical:ProjectionType>equirectangular</GSpherical:ProjectionType>"
        "</rdf:SphericalVideo>"
    )
    return _make_box(b"uuid", _V1_UUID + xml.encode("utf-8"))


def _v2_boxes() -> bytes:
    version_and_flags = bytes(4)
    mono = _make_box(b"st3d", version_and_flags + bytes([0]))
    source = _make_box(b"svhd", version_and_flags + _SOFTWARE.encode("ascii") + b"\0")
    pose = _make_box(b"prhd", version_and_flags + struct.pack(">3i", 0, 0, 0))
    bounds = _make_box(b"equi", version_and_flags + struct.pack(">4I", 0, 0, 0, 0))
    return mono + _make_box(b"sv3d", source + _make_box(b"proj", pose + bounds))
