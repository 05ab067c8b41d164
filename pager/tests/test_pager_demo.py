"""The demo end to end with the embedded checkpoints, and its page in a real browser."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pager.cli.demo import main
from pager.embedded import TINY_ASSETS
from shared_pano_utils.imageio import read_image

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--disable-background-networking", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert main(["--out", str(out)]) == 0
    return out / "procedural_room"


def test_the_tour_deletes_only_what_a_tour_has_made(tmp_path: Path):
    """It gets no further than its first command here."""
    mine = tmp_path / "mine/results/photo.png"
    mine.parent.mkdir(parents=True)
    mine.touch()
    command = ["bash", str(Path(__file__).parents[1] / "scripts/tour.sh"), "mine"]
    common = {"cwd": tmp_path, "env": {**os.environ, "PYTHON": "false"}, "capture_output": True}
    assert subprocess.run(command, **common).returncode == 2
    assert mine.is_file()
    (tmp_path / "mine/.tour").touch()
    assert subprocess.run(command, **common).returncode == 1
    assert not mine.is_file()


def test_demo_writes_every_output(demo: Path):
    names = {path.name for path in demo.iterdir()}
    assert names == {
        "depth.npz", "depth.png", "depth.json", "depth_preview.png", "points.ply",
        "normals.npz", "normals.png", "normals_preview.png", "index.html", "meta.json",
    }  # fmt: skip
    depth = np.load(demo / "depth.npz")["arr_0"]
    normals = np.load(demo / "normals.npz")["arr_0"]
    assert depth.shape == (1, 512, 1024)
    assert np.abs(np.linalg.norm(normals, axis=0) - 1).max() < 1e-4
    assert set(json.loads((demo / "meta.json").read_text())["files"]) == names - {"meta.json"}
    links = re.findall(r'href="(procedural_room/[^"]+)"', (demo.parent / "index.html").read_text())
    assert {Path(link).name for link in links} == names - {"meta.json"}


def test_demo_takes_any_panorama(tmp_path: Path):
    image = Image.fromarray(np.full((75, 150, 3), 128, np.uint8))
    image.save(tmp_path / "grey.jpg")
    assert main(["--out", str(tmp_path / "out"), "--input", str(tmp_path / "grey.jpg")]) == 0
    assert np.load(tmp_path / "out" / "grey" / "depth.npz")["arr_0"].shape == (1, 75, 150)


def test_demo_refuses_what_is_no_panorama(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(np.zeros((100, 150, 3), np.uint8)).save(tmp_path / "photo.png")
    assert main(["--out", str(tmp_path / "out"), "--input", str(tmp_path / "photo.png")]) == 1
    assert "width must be 2 x height" in capsys.readouterr().err


def test_embedded_checkpoints_are_small():
    assert sum(p.stat().st_size for p in TINY_ASSETS.rglob("*") if p.is_file()) <= 10e6


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on PATH")
def test_page_loads_and_shows_no_seam_at_the_back(demo: Path, tmp_path: Path):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 800, "height": 600})
        problems: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url)
            ),
        )
        page.goto((demo.parent / "index.html").as_uri())
        page.wait_for_function("document.documentElement.dataset.viewer === 'load'")
        for label in ("RGB", "Depth", "Normals"):
            page.get_by_role("button", name=label, exact=True).click()
            page.wait_for_function("document.documentElement.dataset.viewer === 'load'")
            page.evaluate("window.panoViewer.lookAt(0, 180, 90, false)")
            page.wait_for_timeout(300)
            page.screenshot(path=str(tmp_path / f"{label}.png"))
        browser.close()
    assert problems == []
    for label in ("Depth", "Normals"):
        shown = read_image(tmp_path / f"{label}.png")
        assert seam_ratio(shown) < 1.6
        shown[:, 400:] = np.clip(shown[:, 400:].astype(int) + 8, 0, 255)
        assert seam_ratio(shown) > 2  # what a visible seam measures


def seam_ratio(screenshot: np.ndarray) -> float:
    """Colour change over four columns across the middle, relative to that within 40 px of it.

    Four, because the viewer does not interpolate across the cut: half a texel on each side is flat
    and the step between them has the height of the slope there.
    """
    rows = screenshot[150:550].astype(float)
    change = np.abs(rows[:, 4:] - rows[:, :-4]).mean((0, 2))
    middle = screenshot.shape[1] // 2 - 2
    return change[middle - 2 : middle + 2].max() / max(
        change[middle - 40 : middle + 40].mean(), 0.2
    )
