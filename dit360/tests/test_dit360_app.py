"""The demo in the browser: painted masks, runs, messages, files, and its page in Chromium."""

import base64
import gc
import html
import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit360.captions import TRIGGER
from dit360.cli import app as cli
from dit360.editing import EditResult, EditSettings
from dit360.editing.place import place_photo
from dit360.generate import Settings, generate_image, read_made_with
from dit360.pipeline import DiT360Pipeline
from shared_pano_utils import rotate_erp
from shared_pano_utils.imageio import read_image, write_image
from shared_pano_utils.metadata import read_gpano
from shared_pano_utils.metrics import seam_error

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--disable-background-networking", "--disable-sync"]  # fmt: skip
HEIGHT = 64
SAMPLING = Settings(height=HEIGHT, width=2 * HEIGHT, num_inference_steps=2, max_sequence_length=12)
EDITING = EditSettings(prompt="", num_inference_steps=2, max_sequence_length=12, paste=1)
SLIDERS = (2, 2.8)  # steps, guidance

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
    from dit360 import app

    examples = sys.modules[f"{app.__name__}.examples"]
    with pytest.MonkeyPatch.context() as patch:  # rendered anew for every page
        patch.setattr(examples, "RENDER_HEIGHT", 64)
        patch.setattr(examples, "PHOTO_PX", 64)
        yield app
    gc.collect()  # what gradio left open is reported here, where it is ignored


@pytest.fixture(scope="module")
def painting(app: types.ModuleType) -> types.ModuleType:
    return sys.modules[f"{app.__name__}.painting"]


@pytest.fixture(scope="module")
def studio_module(app: types.ModuleType) -> types.ModuleType:
    return sys.modules[f"{app.__name__}.studio"]


@pytest.fixture(scope="module")
def pipeline(micro_flux: Path) -> DiT360Pipeline:
    return DiT360Pipeline.from_pretrained(micro_flux)


@pytest.fixture
def studio(app: types.ModuleType, pipeline: DiT360Pipeline, tmp_path: Path) -> Any:
    return app.Studio(pipeline, SAMPLING, EDITING, tmp_path)


@pytest.fixture
def edits(studio_module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of every edit, which is done by turning the colours around."""
    calls = []

    def invert(_: Any, source: np.ndarray, keep: np.ndarray, settings: EditSettings) -> EditResult:
        calls.append((source, keep, settings))
        image = np.where(keep[..., None], source, 255 - source)
        return EditResult(
            image=image, reconstruction=None, kept_psnr_db=41.25, model_psnr_db=23.5,
            border_step=1.5, evaluations=4,
        )  # fmt: skip

    monkeypatch.setattr(studio_module, "edit", invert)
    return calls


def smooth_panorama(height: int) -> np.ndarray:
    """Colours that continue across +-180 degrees, (H, 2H, 3) uint8."""
    lon, lat = angles(height)
    waves = [np.cos(lon) * np.cos(lat), np.sin(2 * lon) * np.cos(lat), np.sin(lat)]
    return np.round(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def angles(height: int) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of the pixel centres, radians, (H, 2H) each."""
    lon = (np.arange(2 * height) + 0.5) / height * np.pi - np.pi
    lat = np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi
    return np.meshgrid(lon, lat)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a panorama, photos of 3:2 and 1:1, and a text."""
    folder = tmp_path_factory.mktemp("pictures")
    write_image(folder / "panorama.png", smooth_panorama(HEIGHT))
    write_image(folder / "photo.png", smooth_panorama(60)[:, :90])
    write_image(folder / "square.png", smooth_panorama(60)[:, 30:90])
    (folder / "notes.png").write_text("not an image")
    return folder


# ---- painting -----------------------------------------------------------------------------------


def disc(shape: tuple[int, int], radius_px: float) -> np.ndarray:
    rows, columns = np.indices(shape) + 0.5
    return np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < radius_px


@pytest.mark.parametrize(
    "view", [(0, 0, 90), (37.5, -20, 60), (180, 10, 100), (-120, 70, 75), (10, 90, 110)]
)
def test_disc_in_the_middle_of_a_view_is_a_cap_around_its_direction(painting, view):
    window = painting.Window(*view)
    height = 128
    focal_px = painting.VIEW_SIZE[1] / 2 / np.tan(np.radians(window.fov_deg) / 2)
    radius_px = 200.0
    painted = window.write_back(disc(painting.VIEW_SIZE, radius_px), height)

    lon, lat = angles(height)
    yaw, pitch = np.radians(window.yaw_deg), np.radians(window.pitch_deg)
    cosine = np.sin(lat) * np.sin(pitch) + np.cos(lat) * np.cos(pitch) * np.cos(lon - yaw)
    away = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    edge, pixel = np.degrees(np.arctan(radius_px / focal_px)), np.degrees(1 / focal_px)
    assert painted[away < edge - pixel].all()
    assert not painted[away > edge + pixel].any()


def test_strokes_on_the_right_and_above_are_on_the_right_and_above(painting):
    height, width = painting.VIEW_SIZE
    strokes = np.zeros(painting.VIEW_SIZE, bool)
    strokes[: height // 2, width // 2 :] = True
    lon, lat = np.degrees(angles(96))
    painted = painting.Window(0, 0, 90).write_back(strokes, 96)
    assert painted.any()
    assert lon[painted].min() > 0
    assert lat[painted].min() > 0
    # The corner of the view: 45 degrees aside, tan(lat) = cos(45) * 3/4 up there.
    assert lon[painted].max() == pytest.approx(45, abs=2)
    assert lat[painted].max() == pytest.approx(np.degrees(np.arctan(0.75)), abs=2)


def test_a_turned_view_paints_the_turned_mask(painting):
    strokes = disc(painting.VIEW_SIZE, 150)
    strokes[:100, :300] = True
    height = 96
    front = painting.Window(0, 25, 80).write_back(strokes, height)
    for columns in (1, 50, 96, 150):
        yaw = columns * 180 / height
        turned = painting.Window(yaw, 25, 80).write_back(strokes, height)
        assert (turned != np.roll(front, columns, 1)).sum() <= 2  # rounding in the projection
    # The other way: the panorama turned by the camera's orientation has the view in front.
    flat = painting.Window(0, 0, 80).write_back(strokes, height)
    tilted = painting.Window(33, 25, 80).write_back(strokes, height)
    erp = rotate_erp(tilted[..., None].astype(np.uint8), yaw=33, pitch=25, mode="nearest")
    assert (np.asarray(erp)[..., 0] != flat).sum() < 0.08 * flat.sum()


def test_strokes_of_several_views_add_up(painting):
    canvas = painting.Canvas.start(smooth_panorama(HEIGHT))
    strokes = disc(painting.VIEW_SIZE, 100)
    windows = [painting.Window(0, 0, 90), painting.Window(170, -30, 60)]
    expected = np.zeros((HEIGHT, 2 * HEIGHT), bool)
    for window in windows:
        canvas = canvas.seen_through(window).painted(strokes)
        expected |= window.write_back(strokes, HEIGHT)
    flat_strokes = np.zeros(painting.FLAT_SIZE, bool)
    flat_strokes[64:128, 512:768] = True  # the editor's pixels are 8 times as fine here
    canvas = canvas.seen_through(None).painted(flat_strokes)
    expected[8:16, 64:96] = True
    assert np.array_equal(canvas.hole, expected)
    again = canvas.painted(flat_strokes).painted(None).painted(np.zeros_like(flat_strokes))
    assert np.array_equal(again.hole, expected)
    assert not canvas.cleared().hole.any()
    assert np.array_equal(canvas.cleared().source, canvas.source)


def test_editor_shows_the_hole_where_it_was_painted(painting):
    window = painting.Window(75, 20, 100)
    grey = np.full((256, 512, 3), 100, np.uint8)
    strokes = disc(painting.VIEW_SIZE, 180)
    canvas = painting.Canvas.start(grey).seen_through(window).painted(strokes)
    seen = canvas.picture()
    assert seen.shape == (*painting.VIEW_SIZE, 3)
    red = seen[..., 0] > 130
    assert (red & strokes).sum() > 0.97 * (red | strokes).sum()
    inside = [50 + value // 2 for value in painting.TINT]
    assert seen[288, 384].tolist() == inside
    assert seen[10, 10].tolist() == [100, 100, 100]
    flat = canvas.seen_through(None).picture()
    assert flat.shape == (*painting.FLAT_SIZE, 3)
    assert np.array_equal(flat, canvas.overview())
    row, column = 512 * (90 - 20) // 180, 1024 * (180 + 75) // 360
    assert flat[row, column].tolist() == inside


def test_examples_hide_their_object(app, painting, tmp_path: Path):
    examples = sys.modules[f"{app.__name__}.examples"]
    example = examples.render_examples(tmp_path)[0]
    assert not example.prompt.startswith(TRIGGER)
    assert "red pillar in front" in example.prompt
    source = read_image(example.panorama)
    assert read_image(example.photo).shape == (64, 64, 3)
    canvas = examples.paint_example(painting.Canvas.start(source), example)
    red = (source[..., 0] > 90) & (source[..., 1:] < 50).all(-1)
    assert red.sum() > 100
    assert canvas.hole[red].mean() > 0.95


# ---- text ---------------------------------------------------------------------------------------


def shown_image(frame: str) -> np.ndarray:
    """The panorama in the 360-degree viewer."""
    page = html.unescape(re.search('srcdoc="([^"]*)"', frame)[1])
    jpeg = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]*)", page)[1])
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def as_jpeg(erp: np.ndarray) -> np.ndarray:
    """What is left of a panorama in the viewer's format."""
    buffer = io.BytesIO()
    Image.fromarray(erp).save(buffer, "JPEG", quality=92, subsampling=0)
    return np.asarray(Image.open(buffer))


def test_text_gives_the_panorama_of_inference_with_its_numbers(studio, pipeline):
    frame, flat, file, prompt, status = studio.generate("  A red room. ", 3, *SLIDERS)
    assert prompt == f"{TRIGGER} A red room."
    erp = read_image(file)
    assert np.array_equal(erp, generate_image(pipeline, prompt, 3, SAMPLING))
    seam = float(seam_error(erp)["wrap_ratio"])
    assert status.startswith(f"seam ratio {seam:.2f} (1 = no seam), 128x64 pixels, seed 3, ")
    assert flat == file
    assert read_gpano(file)["ProjectionType"] == "equirectangular"
    assert read_gpano(file)["FullPanoWidthPixels"] == "128"
    assert read_made_with(Path(file)) == {"prompt": prompt, "seed": 3, **vars(SAMPLING)}
    assert np.array_equal(shown_image(frame), as_jpeg(erp))


def test_sliders_reach_the_pipeline(studio, pipeline):
    _, _, file, prompt, _ = studio.generate(f"{TRIGGER} A room.", 0, 3, 7.5)
    assert prompt == f"{TRIGGER} A room."
    wanted = replace(SAMPLING, num_inference_steps=3, guidance_scale=7.5)
    expected = generate_image(pipeline, prompt, 0, wanted)
    assert np.array_equal(read_image(file), expected)
    assert not np.array_equal(expected, generate_image(pipeline, prompt, 0, SAMPLING))


# ---- edits --------------------------------------------------------------------------------------


def grown(region: np.ndarray, radius: int) -> np.ndarray:
    """A region that ends before the poles, larger by a square, across +-180 degrees."""
    result = np.zeros_like(region)
    for row, column in zip(*np.nonzero(region), strict=True):
        columns = np.arange(column - radius, column + radius + 1) % region.shape[1]
        result[max(0, row - radius) : row + radius + 1, columns] = True
    return result


def test_inpainting_keeps_all_but_the_tokens_under_the_hole(studio, painting, edits, pictures):
    canvas, picture, overview = studio.open_panorama(str(pictures / "panorama.png"))
    assert picture.shape == overview.shape == (512, 1024, 3)
    strokes = np.zeros(painting.FLAT_SIZE, bool)
    strokes[192:256, 512:640] = True  # rows 24-31 and columns 64-79 of the panorama
    canvas, _, _ = studio.paint(canvas, strokes, True, 180, 0, 90)
    assert canvas.window == painting.Window(180, 0, 90)
    # Painted in the view behind, not yet added: counts too.
    behind = disc(painting.VIEW_SIZE, 40)
    numbers = (30, 5, 7, 4.5)  # tau, seed, steps, guidance
    frame, _, file, prompt, status = studio.inpaint(canvas, behind, "A cat.", *numbers)
    ((source, keep, settings),) = edits
    assert np.array_equal(source, smooth_panorama(HEIGHT))
    hole = np.zeros((HEIGHT, 2 * HEIGHT), bool)
    hole[24:32, 64:80] = True
    hole |= canvas.window.write_back(behind, HEIGHT)
    assert hole[32, 0]
    assert hole[32, -1]
    assert np.array_equal(keep, ~grown(hole, 8))
    assert settings == replace(
        EDITING, prompt=prompt, tau=30, seed=5, num_inference_steps=7, guidance_scale=4.5
    )
    assert prompt == f"{TRIGGER} A cat."
    erp = read_image(file)
    assert np.array_equal(erp, np.where(keep[..., None], source, 255 - source))
    assert np.array_equal(shown_image(frame), as_jpeg(erp))
    seam = float(seam_error(erp)["wrap_ratio"])
    assert status.startswith(f"seam ratio {seam:.2f} (1 = no seam), kept region 41.2 dB (23.5 dB ")
    assert "border step 1.50 (1 = invisible), 128x64 pixels, seed 5, " in status
    assert read_made_with(Path(file)) == vars(settings)
    assert read_gpano(file)["ProjectionType"] == "equirectangular"


def test_outpainting_keeps_the_photo_where_the_preview_shows_it(studio, edits, pictures):
    path, camera = str(pictures / "square.png"), (130.0, 159.0, 21.0, 5.0)
    preview = studio.preview_photo(path, *camera)
    _, _, file, prompt, _ = studio.outpaint(path, *camera, "A beach.", 60, 1, *SLIDERS)
    ((source, keep, settings),) = edits
    names = ("fov_deg", "yaw_deg", "pitch_deg", "roll_deg")
    erp, seen = place_photo(read_image(path), HEIGHT, **dict(zip(names, camera, strict=True)))
    assert np.array_equal(source, erp)
    assert np.array_equal(preview[seen], erp[seen])
    assert np.array_equal(preview[~seen], erp[~seen] // 4)
    # As far as the border of the photo reaches into the latents.
    assert np.array_equal(keep, ~grown(~seen, 8))
    assert keep.any()
    assert (settings.tau, settings.seed, settings.prompt) == (60, 1, f"{TRIGGER} A beach.")
    assert prompt == settings.prompt
    assert read_made_with(Path(file)) == vars(settings)


def test_real_edit_keeps_the_source_and_reports_the_psnr(studio, painting, pictures):
    canvas, _, _ = studio.open_panorama(str(pictures / "panorama.png"))
    canvas = canvas.seen_through(painting.Window(90, 0, 60)).painted(disc(painting.VIEW_SIZE, 300))
    _, _, file, _, status = studio.inpaint(canvas, None, "A cat.", 50, 0, *SLIDERS)
    difference = np.abs(read_image(file).astype(int) - canvas.source).max(-1)
    assert (difference[~canvas.hole][:100] == 0).all()
    assert difference[canvas.hole].mean() > 5
    assert "kept region inf dB (" in status  # a hard edge: the source's own pixels


# ---- mistakes -----------------------------------------------------------------------------------


def test_mistakes_are_named(studio, painting, edits, pictures):
    path = str(pictures / "panorama.png")
    canvas, _, _ = studio.open_panorama(path)
    everything = np.ones(painting.FLAT_SIZE, bool)
    rest, camera = (50, 0, *SLIDERS), (90, 0, 0, 0)
    for call, message in (
        (lambda: studio.generate(" ", 0, *SLIDERS), "the prompt is empty; describe the panorama"),
        (lambda: studio.generate("A room.", None, *SLIDERS), "the seed is empty; use a whole"),
        (lambda: studio.open_panorama(None), "there is no panorama yet; upload one or choose"),
        (lambda: studio.clear(None), "there is no panorama yet"),
        (lambda: studio.open_panorama(str(pictures / "photo.png")), "width must be 2 x height"),
        (lambda: studio.open_panorama(str(pictures / "notes.png")), "not a readable image"),
        (lambda: studio.inpaint(None, None, "A cat.", *rest), "there is no panorama yet"),
        (lambda: studio.inpaint(canvas, None, "A cat.", *rest), "the mask is empty; paint over"),
        (lambda: studio.inpaint(canvas, everything, "A cat.", *rest), "covers nearly everything"),
        (lambda: studio.inpaint(canvas, ~disc((512, 1024), 300), " ", *rest), "prompt is empty"),
        (lambda: studio.outpaint(None, *camera, "A cat.", *rest), "there is no photo yet; upload"),
        (lambda: studio.outpaint(path, 20, 0, 0, 0, "A cat.", *rest),
         "a photo of 20 degrees is too small in a panorama of 128x64; use a larger field of view"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert edits == []
    assert studio.preview_photo(None, *camera) is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("/srv/tmp/ab12/pano.png: bad\nfile"), "pano.png: bad file"),
        (ValueError("<img src=x>.png: bad"), "&lt;img src=x&gt;.png: bad"),
        (OSError("no space left"), "no space left"),
        (FloatingPointError("the model gave NaN"), "the model gave NaN"),
        (
            torch.OutOfMemoryError("tried to allocate 3 GiB"),
            "out of memory; start app.py with --memory balanced or low",
        ),
    ],
)
def test_messages_hide_server_paths_and_carry_no_markup(studio_module, error, message):
    import gradio as gr

    with pytest.raises(gr.Error) as caught, studio_module.shown_to_user(Path("/srv/tmp")):
        raise error
    assert caught.value.message == message


def test_our_own_faults_are_not_disguised(studio_module):
    with pytest.raises(ZeroDivisionError), studio_module.shown_to_user(Path("/srv/tmp")):
        _ = 1 / 0


def test_nothing_is_left_when_writing_fails(studio, studio_module, monkeypatch):
    def full_disk(path: Path, erp: np.ndarray, _: Any) -> None:
        write_image(path, erp)
        raise OSError("no space left on device")

    monkeypatch.setattr(studio_module, "write_panorama", full_disk)
    with pytest.raises(OSError, match="no space left"):
        studio.generate("A room.", 0, *SLIDERS)
    assert list(studio.folder.iterdir()) == []


# ---- served -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(app, environment: Path, pipeline: DiT360Pipeline) -> Iterator[str]:
    """Address of a running demo."""
    page = app.build_interface(
        app.Studio(pipeline, SAMPLING, EDITING, environment),
        prompts=["A red room.", "A green field."],
        max_waiting=4,
        delete_cache=(3600, 3600),
    )
    _, url, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, run_history=False
    )
    yield url
    page.close(verbose=False)


class Client:
    """A session that speaks to the server without a browser."""

    def __init__(self, url: str, folder: Path) -> None:
        module = pytest.importorskip("gradio_client")
        self.client = module.Client(url, verbose=False, download_files=folder)
        self.handle = module.handle_file
        self.folder = folder

    def call(self, name: str, *values: Any) -> Any:
        files = [self.handle(str(v)) if isinstance(v, Path) else v for v in values]
        return self.client.predict(*files, api_name=f"/{name}")

    def strokes(self, painted: np.ndarray) -> dict[str, Any]:
        """What the editor sends: the strokes as a layer with alpha."""
        path = self.folder / f"layer{painted.sum()}.png"
        layer = np.zeros((*painted.shape, 4), np.uint8)
        layer[painted] = (255, 48, 48, 255)
        write_image(path, layer)
        return {"background": None, "layers": [self.handle(str(path))], "composite": None}


NOTHING = {"background": None, "layers": [], "composite": None}


@pytest.fixture
def client(server: str, tmp_path: Path) -> Client:
    return Client(server, tmp_path)


def test_painted_views_reach_the_edit(
    client: Client, server: str, painting, edits, pictures: Path, tmp_path: Path
):
    client.call("open_panorama", pictures / "panorama.png")
    strokes = disc(painting.VIEW_SIZE, 120)
    client.call("paint", NOTHING, "Perspective view", 60, 0, 90)
    client.call("paint", client.strokes(strokes), "Perspective view", -100, 40, 70)
    client.call("inpaint", client.strokes(strokes), "A cat.", 50, 0, *SLIDERS)
    keep = edits[-1][1]
    views = [painting.Window(60, 0, 90), painting.Window(-100, 40, 70)]
    hole = np.any([view.write_back(strokes, HEIGHT) for view in views], axis=0)
    assert np.array_equal(keep, ~grown(hole, 8))
    with pytest.raises(Exception, match="there is no panorama yet"):
        Client(server, tmp_path / "other").call("inpaint", NOTHING, "A cat.", 50, 0, *SLIDERS)
    client.call("clear")
    with pytest.raises(Exception, match="the mask is empty; paint over"):
        client.call("inpaint", NOTHING, "A cat.", 50, 0, *SLIDERS)


def test_mistakes_are_answered_in_one_line(client: Client, pictures: Path, environment: Path):
    for values, message in (
        (("generate", " ", 0, *SLIDERS), "the prompt is empty; describe the panorama"),
        (("generate", "A room.", 0, 0, 2.8), "Value 0 is less than minimum value 1."),
        (("open_panorama", pictures / "photo.png"), "photo.png: panorama is 90x60; width must be"),
        (("open_panorama", pictures / "notes.png"), "notes.png: not a readable image"),
    ):
        with pytest.raises(Exception, match=re.escape(message)) as caught:
            client.call(*values)
        assert "\n" not in str(caught.value)
        assert str(environment) not in str(caught.value)


def test_steps_of_a_run_are_counted_on_the_page(client: Client):
    job = client.client.submit("A room.", 0, 12, 2.8, api_name="/generate")
    seen = set()
    while not job.done():
        for unit in job.status().progress_data or ():
            seen.add((unit.index, unit.length))
    job.result()
    assert seen & {(step, 12) for step in range(1, 13)}


def test_api_cannot_read_files_of_the_server(server: str, pictures: Path):
    """Posted by hand: the client would upload the file first."""
    httpx = pytest.importorskip("httpx")
    path = {"path": str(pictures / "panorama.png")}
    typed = path | {"meta": {"_type": "gradio.FileData"}}
    for name, data in (
        ("open_panorama", [typed]),
        ("open_panorama", [path]),
        ("preview_photo", [path, 90, 0, 0, 0]),
    ):
        address = f"{server}gradio_api/call/{name}"
        event = httpx.post(address, json={"data": data}).json()["event_id"]
        answer = httpx.get(f"{address}/{event}", timeout=60).text
        assert answer.startswith("event: error")


def test_editor_reads_strokes_of_uploaded_files_only(app, tmp_path: Path):
    import gradio as gr
    from gradio.components.image_editor import EditorData
    from gradio.data_classes import FileData

    with gr.Blocks():
        editor = sys.modules[f"{app.__name__}.page"]._editor(tmp_path / "uploads")
    layer = np.zeros((8, 16, 4), np.uint8)
    layer[2:4, 5] = (255, 48, 48, 255)
    inside, outside = tmp_path / "uploads" / "layer.png", tmp_path / "layer.png"
    for path in (inside, outside):
        write_image(path, layer)
    strokes = editor.preprocess(EditorData(layers=[FileData(path=str(inside))]))
    assert np.array_equal(strokes, layer[..., 3] > 0)
    assert editor.preprocess(EditorData()) is None
    assert editor.preprocess(None) is None
    secret = FileData(path=str(outside))
    for payload in (
        EditorData(layers=[secret]), EditorData(background=secret), EditorData(composite=secret)
    ):  # fmt: skip
        with pytest.raises(gr.Error, match="that is not an uploaded file"):
            editor.preprocess(payload)


def test_jobs_wait_for_each_other(app, pipeline, tmp_path: Path):
    page = app.build_interface(
        app.Studio(pipeline, SAMPLING, EDITING, tmp_path),
        prompts=["A room."], max_waiting=4, delete_cache=(3600, 3600),
    )  # fmt: skip
    jobs = [f for f in page.fns.values() if f.api_name in ("generate", "inpaint", "outpaint")]
    assert [(f.concurrency_id, f.concurrency_limit) for f in jobs] == [("model", 1)] * 3


# ---- the page -----------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.timeout(900)  # the editor draws with WebGL, which is slow without a GPU
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on PATH")
def test_page_generates_inpaints_and_outpaints(server: str, pictures: Path, tmp_path: Path):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.set_default_timeout(120_000)
        problems = watch(page, server)
        page.goto(server)
        drive_text(page, tmp_path / "text.png")
        drive_inpaint(page, pictures)
        drive_outpaint(page)
        assert problems == []
        browser.close()
    assert read_gpano(tmp_path / "text.png")["ProjectionType"] == "equirectangular"


def drive_text(page, download_to: Path) -> None:
    """An empty prompt, then an example that is run and downloaded."""
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("the prompt is empty; describe the panorama").first.wait_for()
    page.get_by_text("A green field.").first.click()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#text-status", has_text="seam ratio").wait_for()
    page.frame_locator("#text-viewer iframe").locator("html[data-viewer=load]").wait_for()
    assert page.locator("#text-sent textarea").input_value() == f"{TRIGGER} A green field."
    with page.expect_download() as download:
        page.locator("a[href$='panorama.png'][download]:visible").last.click()
    download.value.save_as(download_to)


def drive_inpaint(page, pictures: Path) -> None:
    """A wrong file, an empty mask, a stroke in a perspective view, then an example."""
    page.get_by_role("tab", name="Inpaint").click()
    upload = page.locator("#panorama-upload input[type=file]")
    upload.set_input_files(str(pictures / "photo.png"))
    page.get_by_text("width must be 2 x height").first.wait_for()
    page.locator("#panorama-upload").get_by_role("button", name="Remove Image").click()
    upload.set_input_files(str(pictures / "panorama.png"))
    page.locator("#overview img").wait_for()
    run = page.get_by_role("button", name="Inpaint", exact=True)
    page.locator("#inpaint-prompt textarea").fill("A cat.")
    run.click()
    page.get_by_text("the mask is empty; paint over").first.wait_for()
    page.get_by_role("radio", name="Perspective view").click()
    with page.expect_response(re.compile("image.webp")):  # the view, drawn over what was there
        page.get_by_role("button", name="Add strokes and show this view").click()
    page.wait_for_timeout(2000)
    before = page.locator("#overview img").get_attribute("src")
    paint_stroke(page)
    page.get_by_role("button", name="Add strokes and show this view").click()
    page.wait_for_function(
        "old => document.querySelector('#overview img')?.src !== old", arg=before
    )
    run.click()
    page.locator("#inpaint-status", has_text="kept region").wait_for()
    page.locator("img[src*='examples/0/panorama.png']:visible").first.click()
    holds = "([box, text]) => document.querySelector(box + ' textarea').value.includes(text)"
    page.wait_for_function(holds, arg=["#inpaint-prompt", "a red pillar in front"])
    run.click()
    page.wait_for_function(holds, arg=["#inpaint-sent", "a red pillar in front"])


def drive_outpaint(page) -> None:
    """An example that is turned, so that a token of so small a panorama lies within the photo."""
    page.get_by_role("tab", name="Outpaint").click()
    page.locator("img[src*='examples/0/photo.png']:visible").first.click()
    page.locator("#place img").wait_for()
    for name, value in (("fov", "140"), ("yaw", "24"), ("pitch", "21")):
        number = page.get_by_role("spinbutton", name=f"Photo {name}")
        number.fill(value)
        number.press("Enter")
    page.get_by_role("button", name="Outpaint", exact=True).click()
    page.locator("#outpaint-status", has_text="kept region").wait_for()
    viewer = page.frame_locator("#outpaint-viewer iframe")
    viewer.locator("html[data-viewer=load]").wait_for()


def paint_stroke(page) -> None:
    """Draw from left to right through the middle of the editor's picture."""
    canvas = page.locator("#editor canvas").first
    canvas.hover()  # waits until nothing covers it
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()


def watch(page, url: str) -> list[str]:
    """Collect console errors, exceptions and every request that leaves this machine."""
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    local = (url, "data:", "blob:", "about:")
    page.on("request", lambda r: None if r.url.startswith(local) else problems.append(r.url))
    return problems


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pipeline: DiT360Pipeline) -> Path:
    """Folder of temporary files while `cli.main` runs in this process, on a pipeline in memory."""
    from dit360 import loading

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(loading, "open_pipeline", lambda *_, **__: pipeline)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "restored afterwards")
    return tmp_path


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.usefixtures("app")
def test_command_serves_and_leaves_nothing_behind(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import gradio as gr

    made_with = {}

    def visit(page: gr.Blocks) -> None:
        """What happens until Ctrl-C."""
        client = Client(page.local_url, command / "downloads")
        file = client.call("generate", "A room.", 4, 1, 2.8)[2]
        made_with.update(read_made_with(Path(file)))
        assert [path.name[:11] for path in command.glob("dit360*")] == ["dit360_app_"]
        raise KeyboardInterrupt

    monkeypatch.setattr(gr.Blocks, "block_thread", visit)
    port = free_port()
    assert cli.main(["--tiny", "--port", port]) == 0
    assert capsys.readouterr().out == (
        f"open http://127.0.0.1:{port}/ in a browser; Ctrl-C stops\n"
    )
    assert list(command.glob("dit360*")) == []
    assert (made_with["height"], made_with["width"]) == (96, 192)
    assert (made_with["num_inference_steps"], made_with["max_sequence_length"]) == (1, 48)


@pytest.mark.usefixtures("app", "command")
def test_command_names_the_port_that_is_taken(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["--tiny", "--port", str(port)]) == 2
    assert f"cannot serve at --host 127.0.0.1 --port {port} (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--height", "100"], "the height is 100; use a multiple of 16"),
        (["--max_sequence_length", "0"], "max_sequence_length is 0; use 1 or more"),
        (["--text_cache", "cache"], "--text_cache holds known prompts only"),
    ],
)
@pytest.mark.usefixtures("app", "command")
def test_command_refuses_before_it_loads(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch
):
    from dit360 import loading

    monkeypatch.setattr(loading, "open_pipeline", None)
    assert cli.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_stopping_by_a_service_manager_is_like_ctrl_c(
    command: Path, monkeypatch: pytest.MonkeyPatch
):
    caught = []
    monkeypatch.setattr(cli.signal, "signal", lambda *pair: caught.append(pair))
    monkeypatch.setattr(cli, "_build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main([]) == 130
    assert caught == [(signal.SIGTERM, signal.default_int_handler)]
    assert list(command.glob("dit360*")) == []


def test_root_file_is_the_command():
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py"), "--help"], capture_output=True, text=True, check=True
    )
    for flag in ("--tiny", "--lora", "--memory", "--host", "--port", "--share", "--height"):
        assert flag in done.stdout
