"""The viewer page works offline in a real browser and shows no seam where there is none."""

import base64
import hashlib
import io
import re
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared_pano_utils.imageio import write_image, write_png16
from shared_pano_utils.viewer import MAX_TEXTURE_WIDTH, write_viewer

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOADED = "document.documentElement.dataset.viewer === 'load'"


def panorama(*, seam: int = 0, height: int = 256) -> np.ndarray:
    """Smooth colours; with `seam` > 0 grey levels drift from left to right and jump at the cut."""
    width = 2 * height
    lon = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    lat = np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi
    ring = np.stack([np.sin(lon), np.sin(lon + 2), np.sin(lon + 4)], -1)
    values = 128 + 60 * ring[None] * np.cos(lat)[:, None, None] + 20 * np.sin(lat)[:, None, None]
    drift = seam * ((np.arange(width) + 0.5) / width - 0.5)
    return (values + drift[None, :, None]).round().clip(0, 255).astype(np.uint8)


def embedded_images(page: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r"data:image/(?:jpeg|png);base64,([\w+/=]+)", page)
    ]


# ---- the file -----------------------------------------------------------------------------------


def test_pannellum_is_the_recorded_release():
    folder = resources.files("shared_pano_utils") / "assets" / "pannellum"
    lines = (folder / "VERSION.txt").read_text().splitlines()
    digests = [line.split() for line in lines if re.match(r"[0-9a-f]{64} ", line)]
    recorded = {name: digest for digest, name in digests}
    assert set(recorded) == {"pannellum.js", "pannellum.css", "COPYING"}
    for name, digest in recorded.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_page_holds_everything(tmp_path):
    write_image(tmp_path / "a.png", panorama(height=64))
    encoded = io.BytesIO()
    Image.fromarray(panorama(height=32)).save(encoded, "PNG")
    write_viewer(
        tmp_path / "out" / "view.html",
        {"RGB": tmp_path / "a.png", "Depth": encoded.getvalue(), "Grey": panorama()[..., 0]},
        title="<script>alert(1)</script>",
        description="a & b",
        links={"points": "my cloud.ply"},
        image_format="png",
    )
    page = (tmp_path / "out" / "view.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "a &amp; b" in page
    assert 'href="my%20cloud.ply"' in page
    # No element loads anything from outside the page.
    assert not re.search(
        r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", page.split("<script>")[0]
    )
    first, second, third = embedded_images(page)
    np.testing.assert_array_equal(np.asarray(first), panorama(height=64))
    assert (second.size, third.size, third.mode) == ((64, 32), (512, 256), "L")


def test_jpeg_is_close_and_wide_images_are_reduced(tmp_path):
    write_viewer(tmp_path / "a.html", {"RGB": panorama()}, title="a")
    (image,) = embedded_images((tmp_path / "a.html").read_text())
    assert image.format == "JPEG"
    assert np.abs(np.asarray(image).astype(int) - panorama()).mean() < 1.5
    wide = np.zeros((64, 2 * MAX_TEXTURE_WIDTH, 3), np.uint8)
    write_viewer(tmp_path / "b.html", {"wide": wide}, title="b")
    (image,) = embedded_images((tmp_path / "b.html").read_text())
    assert image.size == (MAX_TEXTURE_WIDTH, 32)


def test_bad_panoramas_are_named(tmp_path):
    def write(value: object) -> None:
        write_viewer(tmp_path / "a.html", {"x": value}, title="a")  # pyright: ignore[reportArgumentType]

    write_png16(tmp_path / "d.png", np.zeros((16, 32), np.uint16))
    with pytest.raises(ValueError, match=r"d\.png: pixels are of kind I;16"):
        write(tmp_path / "d.png")
    with pytest.raises(ValueError, match="panorama 'x': not a readable image"):
        write(b"no image")
    with pytest.raises(TypeError, match="panorama 'x' is float32"):
        write(np.zeros((16, 32, 3), np.float32))
    with pytest.raises(ValueError, match=r"panorama 'x' has shape \(3, 16, 32\)"):
        write(np.zeros((3, 16, 32), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        write(tmp_path / "none.png")
    with pytest.raises(ValueError, match="panoramas is empty"):
        write_viewer(tmp_path / "a.html", {}, title="a")
    assert not (tmp_path / "a.html").exists()


# ---- in the browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium binary found (apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield instance
        instance.close()


class Visit:
    """One open page with the problems and requests it caused."""

    def __init__(self, browser, path: Path):
        self.page = browser.new_page(viewport={"width": 640, "height": 480})
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console",
            lambda line: self.problems.append(line.text) if line.type == "error" else None,
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def wait(self, condition: str = LOADED) -> None:
        self.page.wait_for_function(condition, timeout=20_000)

    def screenshot(self, yaw: float) -> np.ndarray:
        """Pixels of the 360-degree view (h, w, 3) float, looking at the horizon at `yaw`."""
        self.page.evaluate(f"panoViewer.setYaw({yaw}, false); panoViewer.setPitch(0, false)")
        self.page.wait_for_function(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        )
        data = self.page.locator(".pnlm-render-container").screenshot()
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def seam_ratio(view: np.ndarray) -> float:
    """Largest step between columns near the centre over the typical step elsewhere in the view."""
    rows = view[view.shape[0] // 4 : 3 * view.shape[0] // 4]
    steps = np.abs(np.diff(rows, axis=1)).mean((0, 2))
    middle = view.shape[1] // 2
    near = slice(middle - 4, middle + 4)
    away = np.concatenate([steps[60 : middle - 20], steps[middle + 20 : -20]])
    return float(steps[near].max() / (np.percentile(away, 95) + 0.5))


@pytest.mark.browser
def test_viewer_loads_without_errors_or_requests(browser, tmp_path):
    path = tmp_path / "a.html"
    flat = {name: np.full((64, 128, 3), value, np.uint8) for name, value in (("A", 60), ("B", 200))}
    marked = flat["A"].copy()
    marked[24:40, 56:72] = (255, 0, 0)
    write_viewer(path, {"A": marked, "B": flat["B"]}, title="a", image_format="png")
    visit = Visit(browser, path)
    visit.wait()
    assert visit.page.evaluate("document.documentElement.dataset.label") == "A"
    view = visit.screenshot(0)
    middle = view[view.shape[0] // 2, view.shape[1] // 2]
    np.testing.assert_allclose(middle, (255, 0, 0), atol=3)

    visit.page.evaluate("panoViewer.setYaw(75, false); panoViewer.setPitch(-20, false)")
    visit.page.keyboard.press("2")
    visit.wait()
    state = "[panoViewer.getYaw(), panoViewer.getPitch(), document.documentElement.dataset.label]"
    assert visit.page.evaluate(state) == [75, -20, "B"]
    np.testing.assert_allclose(visit.screenshot(0)[100, 300], 200, atol=3)
    visit.page.get_by_role("button", name="A", exact=True).click()
    visit.wait()
    assert visit.page.evaluate("document.documentElement.dataset.label") == "A"
    assert visit.page.locator("button[aria-pressed=true]").inner_text() == "A"

    visit.page.locator(".pnlm-container").focus()
    before = visit.page.evaluate("panoViewer.getYaw()")
    visit.page.keyboard.down("ArrowRight")
    visit.page.wait_for_timeout(200)
    visit.page.keyboard.up("ArrowRight")
    assert visit.page.evaluate("panoViewer.getYaw()") > before

    assert visit.problems == []
    assert {url.split(":")[0] for url in visit.requests} <= {"file", "data", "blob"}


@pytest.mark.browser
def test_seam_is_invisible_only_when_there_is_none(browser, tmp_path):
    ratios = {}
    for seam in (0, 30):
        write_viewer(tmp_path / "a.html", {"RGB": panorama(seam=seam)}, title="a")
        visit = Visit(browser, tmp_path / "a.html")
        visit.wait()
        ratios[seam] = seam_ratio(visit.screenshot(180))
        assert seam_ratio(visit.screenshot(0)) < 2
        visit.page.close()
    assert ratios[0] < 2
    assert ratios[30] > 5


@pytest.mark.browser
def test_broken_image_is_reported_on_the_page(browser, tmp_path):
    write_viewer(tmp_path / "a.html", {"RGB": panorama()}, title="a")
    page = (tmp_path / "a.html").read_text()
    broken = re.sub(r'"data:image/jpeg;base64,[^"]*"', '"missing.jpg"', page)
    (tmp_path / "b.html").write_text(broken)
    visit = Visit(browser, tmp_path / "b.html")
    visit.wait("document.documentElement.dataset.viewer === 'error'")
    assert visit.page.get_by_role("alert").is_visible()
    assert "missing.jpg" in visit.page.get_by_role("alert").inner_text()
