"""The demo in the browser: its models, its files, its page in Chromium, and its end."""

import argparse
import gc
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from pager.cli import app as cli
from pager.pipeline import PagerPipeline
from shared_pano_utils.imageio import read_erp

ROOT = Path(__file__).parents[1]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--disable-background-networking", "--disable-sync"]  # fmt: skip
DEPTH_FILES = {"depth.npz", "depth.png", "depth.json", "depth_preview.png"}
NORMALS_FILES = {"normals.npz", "normals.png", "normals_preview.png"}
COMMON_FILES = {"index.html", "meta.json"}

# gradio closes neither the event loops nor the sockets of its threads.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of all temporary files, set before gradio is imported, as the command does."""
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield folder


@pytest.fixture(scope="module")
def app(environment: Path) -> Iterator[types.ModuleType]:  # noqa: ARG001 (environment first)
    pytest.importorskip("gradio")
    from pager import app

    yield app
    gc.collect()  # what gradio left open is reported here, where it is ignored


@pytest.fixture
def shelf(app, checkpoints):
    return app.ModelShelf(tasks_of(checkpoints), device="cpu")


def tasks_of(checkpoints: dict[str, Path]) -> dict[str, str]:
    return {
        "Depth": str(checkpoints["depth"]),
        "Metric depth": str(checkpoints["depth"]),
        "Surface normals": str(checkpoints["normals"]),
    }


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """3:2, as an ordinary camera writes."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((100, 150, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    return path


@pytest.fixture
def pano(write_panoramas, tmp_path: Path) -> Path:
    return write_panoramas(tmp_path / "panoramas", 1)[0]


# ---- flags --------------------------------------------------------------------------------------


def test_every_task_has_a_checkpoint_and_tiny_hides_metric_depth(app):
    assert tuple(cli.DEFAULT_CHECKPOINTS) == tuple(app.MODALITIES)
    assert resolve() == {
        "Depth": "prs-eth/PaGeR-depth",
        "Metric depth": "prs-eth/PaGeR-metric-depth",
        "Surface normals": "prs-eth/PaGeR-normals",
    }
    assert list(resolve("--tiny")) == ["Depth", "Surface normals"]
    mixed = resolve("--tiny", "--depth_checkpoint_path", "mine", "--metric_checkpoint_path", "m")
    assert (mixed["Depth"], mixed["Metric depth"]) == ("mine", "m")
    assert mixed["Surface normals"].endswith("normals")


def resolve(*flags: str) -> dict[str, str]:
    args: argparse.Namespace = cli.build_parser().parse_args(flags)
    return cli.resolve_checkpoints(args)


@pytest.mark.parametrize(("flag", "value"), [("--max_size", "16"), ("--concurrency", "0")])
def test_impossible_limits_are_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main([flag, value]) == 2
    assert f"{flag} is {value}" in capsys.readouterr().err


# ---- uploads ------------------------------------------------------------------------------------


def test_wide_panoramas_are_reduced_by_area_averages(app, tmp_path: Path):
    rgb = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "wide.png")
    reduced = app.read_panorama(tmp_path / "wide.png", 32)
    expected = rgb.reshape(16, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(reduced - expected).max() <= 1.0  # Pillow rounds after each of the two passes
    assert np.array_equal(app.read_panorama(tmp_path / "wide.png", 128), rgb)
    assert app.read_panorama(tmp_path / "wide.png", 101).shape == (50, 100, 3)


def test_what_is_no_panorama_is_refused(app, photo: Path, text: Path):
    with pytest.raises(ValueError, match=r"photo\.png: panorama is 150x100; width must be 2 x"):
        app.read_panorama(photo, 2048)
    with pytest.raises(ValueError, match=r"notes\.png: not a readable image"):
        app.read_panorama(text, 2048)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("/srv/tmp/ab12/pano.png: bad\nfile"), "pano.png: bad file"),
        (ValueError("<img src=x>.png: bad"), "&lt;img src=x&gt;.png: bad"),
        (OSError("no space left"), "no space left"),
        (
            torch.OutOfMemoryError("tried to allocate 3 GiB"),
            "out of memory; start app.py with --precision bfloat16 or --device cpu",
        ),
    ],
)
def test_messages_hide_server_paths_and_carry_no_markup(app, error: Exception, message: str):
    import gradio as gr

    with pytest.raises(gr.Error) as caught, app.shown_to_user(Path("/srv/tmp")):
        raise error
    assert caught.value.message == message


def test_our_own_faults_are_not_disguised(app):
    with pytest.raises(ZeroDivisionError), app.shown_to_user(Path("/srv/tmp")):
        _ = 1 / 0


# ---- models -------------------------------------------------------------------------------------


def test_models_are_loaded_on_demand_and_once(shelf, panorama: np.ndarray, checkpoints):
    assert shelf.loaded == ()
    first = shelf.predict("Depth", panorama)
    assert shelf.loaded == ("Depth",)
    expected = PagerPipeline.from_pretrained(checkpoints["depth"], device="cpu")(panorama)
    assert np.array_equal(first.depth, expected.depth)
    model = shelf._loaded["Depth"]
    shelf.predict("Surface normals", panorama)
    shelf.predict("Depth", panorama)
    assert shelf._loaded["Depth"] is model
    assert shelf.loaded == ("Depth", "Surface normals")


def test_one_model_stays_when_memory_is_small(
    app, shelf, panorama: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    shelf.predict("Depth", panorama)
    size = app.model_bytes(shelf._loaded["Depth"].model)
    monkeypatch.setattr(app, "free_bytes", lambda _: 2 * size - 1)
    shelf.predict("Surface normals", panorama)
    assert shelf.loaded == ("Surface normals",)
    monkeypatch.setattr(app, "free_bytes", lambda _: 2 * size)
    shelf.predict("Depth", panorama)
    assert shelf.loaded == ("Surface normals", "Depth")


def test_depth_range_can_be_chosen(app, checkpoints, panorama: np.ndarray):
    """For indoor checkpoints that store none; the notice of `locate` names the flag."""
    path = checkpoints["depth"]
    depth = app.ModelShelf({"Depth": str(path)}, device="cpu", max_depth=15.0).predict(
        "Depth", panorama
    )
    expected = PagerPipeline.from_pretrained(path, device="cpu", max_depth=15.0)(panorama)
    assert np.array_equal(depth.depth, expected.depth)
    assert depth.far_m == 0.95 * 15
    assert cli.build_parser().parse_args(["--max_depth", "15"]).max_depth == 15


def test_model_bytes_counts_parameters_and_buffers(app):
    model = torch.nn.BatchNorm1d(5)  # 2 x 5 weights, 2 x 5 statistics, a 64-bit counter
    assert app.model_bytes(model) == 4 * 20 + 8


def test_checkpoint_of_the_other_modality_is_refused(app, checkpoints, panorama: np.ndarray):
    shelf = app.ModelShelf({"Depth": str(checkpoints["normals"])}, device="cpu")
    with pytest.raises(ValueError, match="predicts normals, but is given for 'Depth'"):
        shelf.predict("Depth", panorama)
    assert shelf.loaded == ()


# ---- one request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "with_points", "names"),
    [
        ("Depth", False, DEPTH_FILES),
        ("Metric depth", True, DEPTH_FILES | {"points.glb"}),
        ("Surface normals", False, NORMALS_FILES),
        ("Surface normals", True, NORMALS_FILES | DEPTH_FILES | {"points.glb"}),
    ],
)
def test_each_task_gives_its_files(
    app, shelf, pano: Path, tmp_path: Path, task: str, with_points: bool, names: set[str]
):
    predict = app.Predictor(shelf, tmp_path / "results", 2048)
    _, picture, viewer, cloud, files = predict(str(pano), task, with_points)
    assert {Path(file).name for file in files} == names | COMMON_FILES
    folder = Path(picture).parent
    assert {path.name for path in folder.iterdir()} == names | COMMON_FILES
    assert Path(picture).name == f"{app.MODALITIES[task]}_preview.png"
    assert (cloud is None) == (not with_points)
    assert viewer.startswith("<iframe")
    assert viewer.count("data:image/jpeg") == 2
    assert json.loads((folder / "meta.json").read_text())["source"] == pano.name


def test_wide_uploads_give_results_of_the_largest_width(app, shelf, pano: Path, tmp_path: Path):
    predict = app.Predictor(shelf, tmp_path, 32)
    status, picture, *_ = predict(str(pano), "Depth", False)
    assert status.startswith("32 x 16 pixels, ")
    assert np.load(Path(picture).with_name("depth.npz"))["arr_0"].shape == (1, 16, 32)


def test_status_says_what_the_unit_means(app):
    depth = np.array([[[0.5, 2.0]]], np.float32)
    line = app.describe(app.Prediction(depth=depth), (512, 1024), 3.21)
    assert line == "1024 x 512 pixels, depth 0.50 to 2.00 (metres up to one unknown factor), 3.2 s"
    assert "depth 0.50 to 2.00 m," in app.describe(
        app.Prediction(depth=depth, is_metric=True), (512, 1024), 3.21
    )


def test_nothing_is_left_when_writing_fails(
    app, shelf, pano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import gradio as gr

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(app, "viewer_frame", full_disk)
    with pytest.raises(gr.Error, match="no space left"):
        app.Predictor(shelf, tmp_path / "results", 2048)(str(pano), "Depth", False)
    assert list((tmp_path / "results").iterdir()) == []


# ---- served -------------------------------------------------------------------------------------


@dataclass
class Server:
    url: str
    shelf: object


@pytest.fixture(scope="module")
def server(app, environment: Path, checkpoints) -> Iterator[Server]:
    shelf = app.ModelShelf(tasks_of(checkpoints), device="cpu")
    page = app.build_interface(
        shelf, environment, max_width=2048, concurrency=2, max_waiting=4, delete_cache=(3600, 3600)
    )
    _, url, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, run_history=False
    )
    yield Server(url, shelf)
    page.close(verbose=False)
    left = [path for path in environment.rglob("*") if path.is_file() and "points" in path.name]
    assert left == []  # delete_cache: the results go with the server


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on PATH")
def test_page_predicts_shows_and_refuses(
    server: Server, checkpoints, pano: Path, photo: Path, text: Path, tmp_path: Path
):
    sync_api = pytest.importorskip("playwright.sync_api")
    assert server.shelf.loaded == ()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(60_000)
        problems = watch(page, server.url)
        page.goto(server.url)
        page.get_by_role("button", name="Run", exact=True).wait_for()
        assert page.get_by_role("radio").count() == 3
        for name in ("corridor", "outdoor", "room"):
            page.locator(f"img[src*='{name}.jpg']").wait_for()
        assert server.shelf.loaded == ()

        upload(page, pano)
        page.get_by_role("button", name="Run", exact=True).click()
        page.locator("#status", has_text="64 x 32 pixels, depth").wait_for()
        assert server.shelf.loaded == ("Depth",)
        frame = page.frame_locator("#viewer iframe")
        frame.locator("html[data-viewer=load]").wait_for()
        frame.get_by_role("button", name="RGB", exact=True).click()
        frame.locator("html[data-viewer=load][data-label=RGB]").wait_for()
        with page.expect_download() as download:
            page.locator("a[href$='points.glb']").last.click()
        download.value.save_as(tmp_path / "points.glb")
        page.locator("canvas").wait_for()
        assert problems == []

        for path, message in ((photo, "width must be 2 x height"), (text, "not a readable image")):
            upload(page, path)
            page.get_by_role("button", name="Run", exact=True).click()
            page.get_by_text(message).first.wait_for()

        page.locator("img[src*='room.jpg']").click()  # an example takes the place of the upload
        page.get_by_role("button", name="Remove Image").first.wait_for()
        page.get_by_role("button", name="Run", exact=True).click()
        page.locator("#status", has_text="512 x 256 pixels, depth").wait_for()
        browser.close()
    (cloud,) = trimesh.load_scene(tmp_path / "points.glb").geometry.values()
    assert len(cloud.vertices) == len(cloud.colors) > 0
    depth = PagerPipeline.from_pretrained(checkpoints["depth"], device="cpu")(read_erp(pano)).depth
    away = np.linalg.norm(cloud.vertices, axis=1)[:, None] - depth.ravel()
    assert np.abs(away).min(1).max() < 1e-4  # every point lies where a pixel's depth puts it


def watch(page, url: str) -> list[str]:
    """Collect console errors, exceptions and every request that leaves this machine."""
    problems: list[str] = []

    def on_console(message) -> None:
        # The point-cloud viewer asks for WebGPU first, which software rendering lacks.
        if message.type == "error" and "WebGPU" not in message.text:
            problems.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(str(error)))
    local = (url, "data:", "blob:", "about:")
    page.on("request", lambda r: None if r.url.startswith(local) else problems.append(r.url))
    return problems


def upload(page, path: Path) -> None:
    clear = page.get_by_role("button", name="Remove Image")
    if clear.count():
        clear.first.click()
    page.locator("input[type=file]").first.set_input_files(str(path))
    page.get_by_role("button", name="Remove Image").first.wait_for()


def test_api_returns_what_the_pipeline_predicts(
    server: Server, pano: Path, checkpoints, tmp_path: Path
):
    client_module = pytest.importorskip("gradio_client")
    client = client_module.Client(server.url, verbose=False, download_files=tmp_path / "downloads")
    handle = client_module.handle_file(str(pano))
    _, picture, _, _, files = client.predict(handle, "Surface normals", True, api_name="/predict")
    served = {Path(file).name: Path(file) for file in files}
    assert set(served) == NORMALS_FILES | DEPTH_FILES | COMMON_FILES | {"points.glb"}
    rgb = read_erp(pano)
    for modality in ("normals", "depth"):
        expected = PagerPipeline.from_pretrained(checkpoints[modality], device="cpu")(rgb)
        values = np.load(io.BytesIO(served[f"{modality}.npz"].read_bytes()))["arr_0"]
        assert np.array_equal(values, getattr(expected, modality))
    assert Path(picture).name == "normals_preview.png"


def test_api_cannot_read_files_of_the_server(server: Server, pano: Path):
    """Posted by hand: the client would upload the file first."""
    httpx = pytest.importorskip("httpx")
    address = f"{server.url}gradio_api/call/predict"
    payload = {"path": str(pano), "meta": {"_type": "gradio.FileData"}}
    for image in (payload, {"path": payload["path"]}):
        event = httpx.post(address, json={"data": [image, "Depth", False]}).json()["event_id"]
        assert httpx.get(f"{address}/{event}", timeout=60).text.startswith("event: error")


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_command_names_the_port_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "restored afterwards")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["--device", "cpu", "--port", str(port)]) == 2
    assert f"cannot serve at --host 127.0.0.1 --port {port} (" in capsys.readouterr().err


def test_command_serves_and_leaves_nothing_behind(checkpoints, tmp_path: Path):
    pytest.importorskip("gradio")
    flags = [
        "--depth_checkpoint_path", str(checkpoints["depth"]),
        "--normals_checkpoint_path", str(checkpoints["normals"]), "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:")
        assert [path.name[:10] for path in tmp_path.iterdir()] == ["pager_app_"]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
