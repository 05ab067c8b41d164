"""One self-contained HTML page with a 360-degree viewer, to look at panoramas without a server.

The page holds the viewer (pannellum, see assets/pannellum/VERSION.txt), its style sheet and the
images as base64, and a content security policy that forbids every request.
"""

import base64
import html
import io
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Literal
from urllib.parse import quote

import numpy as np
from PIL import Image

from .imageio import atomic_path, decode_image, read_image

# WebGL guarantees less, but 8192 is what software renderers and current phones offer.
MAX_TEXTURE_WIDTH = 8192

Panorama = str | Path | bytes | np.ndarray


def write_viewer(
    path: str | Path,
    panoramas: Mapping[str, Panorama],
    *,
    title: str,
    description: str = "",
    links: Mapping[str, str | Path] | None = None,
    yaw: float = 0.0,
    pitch: float = 0.0,
    hfov: float = 100.0,
    image_format: Literal["jpeg", "png"] = "jpeg",
) -> None:
    """Write a page with one button a panorama; switching keeps the viewing direction.

    Every panorama covers the full sphere; yaw 0 shows the centre of the image. Panoramas wider
    than 8192 pixels are reduced. The page sets ``document.documentElement.dataset.viewer`` to
    "load" when a panorama is on the screen and to "error" when that fails (the message is shown),
    and keeps the pannellum viewer in ``window.panoViewer``.

    Args:
        path: the .html file; missing folders are made and the write is atomic.
        panoramas: label -> image file, encoded image (bytes), or (H, W) / (H, W, 3) uint8 array,
            in the order of the buttons.
        title: page title and heading.
        description: one line of plain text below the heading.
        links: label -> file beside the page or other address, listed at the end of the bar.
        yaw: initial direction, degrees to the right.
        pitch: initial direction, degrees upwards.
        hfov: initial horizontal field of view, degrees.
        image_format: "jpeg" (quality 92) or "png" (lossless, about ten times larger).

    Raises:
        FileNotFoundError: a panorama file does not exist.
        TypeError: a panorama is none of the allowed kinds.
        ValueError: no panorama, or one that is not an 8-bit image.
    """
    if not panoramas:
        raise ValueError("panoramas is empty; pass at least one label -> image")
    scenes = {
        f"p{index}": {"label": label, "src": _data_url(_to_array(value, label), image_format)}
        for index, (label, value) in enumerate(panoramas.items())
    }
    view = {"yaw": yaw, "pitch": pitch, "hfov": hfov}
    page = _fill_page(title, description, scenes, view, links or {})
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _to_array(panorama: Panorama, label: str) -> np.ndarray:
    if isinstance(panorama, bytes):
        return decode_image(panorama, f"panorama {label!r}")
    if isinstance(panorama, (str, Path)):
        return read_image(panorama)
    if not isinstance(panorama, np.ndarray) or panorama.dtype != np.uint8:
        kind = getattr(panorama, "dtype", type(panorama).__name__)
        raise TypeError(
            f"panorama {label!r} is {kind}; pass a file, encoded bytes or a uint8 array"
        )
    if panorama.ndim == 2 or (panorama.ndim == 3 and panorama.shape[2] == 3):
        return panorama
    raise ValueError(f"panorama {label!r} has shape {panorama.shape}; expected (H, W, 3)")


def _data_url(array: np.ndarray, image_format: Literal["jpeg", "png"]) -> str:
    if image_format not in ("jpeg", "png"):
        raise ValueError(f"image_format is {image_format!r}; use 'jpeg' or 'png'")
    image = Image.fromarray(np.ascontiguousarray(array))
    if image.width > MAX_TEXTURE_WIDTH:
        height = max(1, round(image.height * MAX_TEXTURE_WIDTH / image.width))
        image = image.resize((MAX_TEXTURE_WIDTH, height), Image.Resampling.BOX)
    options = {"quality": 92, "subsampling": 0} if image_format == "jpeg" else {}
    buffer = io.BytesIO()
    image.save(buffer, format=image_format.upper(), **options)
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _fill_page(
    title: str,
    description: str,
    scenes: Mapping[str, Mapping[str, str]],
    view: Mapping[str, float],
    links: Mapping[str, str | Path],
) -> str:
    assets = resources.files("shared_pano_utils") / "assets"
    template = Template((assets / "viewer.html").read_text(encoding="utf-8"))
    buttons = "".join(
        f'<button type="button" data-scene="{key}">{html.escape(scene["label"])}</button>'
        for key, scene in scenes.items()
    )
    anchors = "".join(
        f'<a href="{quote(str(target), safe="/:?#&=%+")}">{html.escape(label)}</a>'
        for label, target in links.items()
    )
    # "<" would let a label end the script element.
    data = json.dumps({"scenes": scenes, "view": view}).replace("<", "\\u003c")
    return template.substitute(
        title=html.escape(title),
        description=f"<p>{html.escape(description)}</p>" if description else "",
        buttons=buttons,
        links=anchors,
        data=data,
        pannellum_css=(assets / "pannellum" / "pannellum.css").read_text(encoding="utf-8"),
        pannellum_js=(assets / "pannellum" / "pannellum.js").read_text(encoding="utf-8"),
    )
