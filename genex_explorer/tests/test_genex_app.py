"""The demo in the browser: its walks, sessions, files, messages, and its page in Chromium."""

import base64
import gc
import html
import io
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from genex_explorer.cli import app as cli
from genex_explorer.cli import explore
from genex_explorer.data.procedural import ClipOptions, find_walk, render_erp
from genex_explorer.explorer import open_pipeline
from genex_explorer.paths import STEP_M, Move, Pose, parse_actions, read_path, trace
from genex_explorer.pipeline import GenexPipeline
from genex_explorer.rotation import turn
from genex_explorer.tiny import tiny_pipeline
from genex_explorer.video import read_video
from genex_explorer.walk import Segment, Walk, WalkSettings, walk
from shared_pano_utils.imageio import write_image
from shared_pano_utils.metadata import read_spherical_video

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--disable-background-networking", "--disable-sync"]  # fmt: skip
SETTINGS = WalkSettings(width=64, height=32, num_inference_steps=1, max_guidance=1.0, fps_id=7)
SIZE = (64, 32)

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
    from genex_explorer import app

    yield app
    gc.collect()  # what gradio left open is reported here, where it is ignored


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random pipeline of 8 frames."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipeline(model: str) -> GenexPipeline:
    return open_pipeline(model, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two panoramas, `room.jpg` and `outdoor.jpg`."""
    folder = tmp_path_factory.mktemp("pictures")
    options = ClipOptions(frames=1, size=SIZE)
    for kind in ("room", "outdoor"):
        scene, poses = find_walk("test", kind, 0, options)
        write_image(folder / f"{kind}.jpg", render_erp(scene, poses[0], options))
    return folder


@pytest.fixture(scope="module")
def room(pictures: Path) -> np.ndarray:
    return np.asarray(Image.open(pictures / "room.jpg"))


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


# ---- a visitor's walk ---------------------------------------------------------------------------


def test_moves_give_the_frames_of_the_path_they_spell(app, pipeline, room: np.ndarray):
    visit = app.Visit(room).turned(33.3).turned(-0.4)
    visit = visit.forward(pipeline, 2, SETTINGS).forward(pipeline, 7, SETTINGS)
    visit = visit.turned(-30).turned(-15).forward(pipeline, 1, SETTINGS).turned(90).turned(10)
    found = visit.walk()
    path = app.format_actions(segment.move for segment in found.segments)
    assert path == f"turn {33.3 - 0.4}, forward 2, forward 7, turn -45, forward 1, turn 100"
    expected = walk(pipeline, room, parse_actions(path), SETTINGS)
    assert len(expected.frames(SIZE)) == 1 + 2 + 7 + 1 + 1
    assert np.array_equal(found.frames(SIZE), expected.frames(SIZE))
    assert found.poses() == expected.poses()
    assert np.array_equal(visit.view().render(), expected.end().render())


def test_undo_goes_back_button_by_button(app, pipeline, room: np.ndarray):
    visits = [app.Visit(room)]
    visits.append(visits[-1].turned(30))
    visits.append(visits[-1].turned(20))
    visits.append(visits[-1].forward(pipeline, 3, SETTINGS))
    visits.append(visits[-1].turned(-10))
    visit = visits[-1]
    for before in reversed(visits[:-1]):
        visit = visit.undone()
        assert visit.moves == before.moves
        assert visit.view().yaw_deg == before.view().yaw_deg
        assert np.array_equal(visit.walk().frames(SIZE), before.walk().frames(SIZE))
    again = visits[2].forward(pipeline, 3, SETTINGS)
    assert np.array_equal(again.walk().frames(SIZE), visits[3].walk().frames(SIZE))
    with pytest.raises(ValueError, match="there is no move to undo"):
        visit.undone()


def test_turns_that_cancel_out_are_no_move(app, room: np.ndarray):
    visit = app.Visit(room).turned(30).turned(-30)
    assert visit.walk().segments == ()
    assert np.array_equal(visit.view().render(), room)


def test_long_walks_end_before_memory_does(app, pipeline, room: np.ndarray, tmp_path: Path):
    clip = Segment(Move(0.0, 1), room[None])
    visit = app.Visit(room, (clip.move,) * app.MAX_CLIPS, (clip,) * app.MAX_CLIPS)
    with pytest.raises(ValueError, match="the walk has 32 clips, no more are kept here; undo"):
        app.Guide(pipeline, SETTINGS, tmp_path).forward(visit, 1)


# ---- map and status -----------------------------------------------------------------------------


def test_map_is_the_walk_seen_from_above(app):
    poses = trace([Move(0.0, 10), Move(90.0, 20), Move(30.0, 0)])
    figure = ElementTree.fromstring(app.draw_map(poses))
    (svg,) = figure.findall("svg")
    points = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    # Ahead is up, which is -y in a drawing; to the right is +x.
    assert points == [(0, 0), (0, -4), (8, -4), (8, -4)]
    arrow = svg.findall("g")[1].find("path").get("transform")
    assert arrow == "translate(8.000 -4.000) rotate(120.000)"
    assert list(map(float, svg.get("viewBox").split())) == [-2, -8, 12, 12]
    assert (svg.find("pattern").get("width"), svg.find("pattern").get("height")) == ("1", "1")
    assert figure.find("figcaption").text.startswith("Squares of 1 m")
    far = ElementTree.fromstring(app.draw_map(trace([Move(0.0, 100)])))
    assert far.find("svg").find("pattern").get("width") == "10"


def test_map_of_a_start_has_a_size(app):
    svg = ElementTree.fromstring(app.draw_map([Pose()])).find("svg")
    assert svg.get("viewBox") == "-1.200 -1.200 2.400 2.400"
    assert len(svg.findall("g")[0]) == 1


def test_status_names_distance_place_and_heading(app):
    frames = np.zeros((5, 64, 128, 3), np.uint8)
    start = Walk(frames[0], ())
    assert app.describe(start) == (
        "0 frames, 0.0 m walked; now 0.00 m ahead of and 0.00 m to the right of the start, "
        "heading 0.0 degrees"
    )
    back = Walk(frames[0], (Segment(Move(-150.0, 5), frames), Segment(Move(20.5, 0), frames[:1])))
    assert app.describe(back) == (
        "5 frames, 2.0 m walked; now 1.73 m behind and 1.00 m to the left of the start, "
        "heading 230.5 degrees"
    )


# ---- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("/srv/tmp/ab12/pano.png: bad\nfile"), "pano.png: bad file"),
        (ValueError("<img src=x>.png: bad"), "&lt;img src=x&gt;.png: bad"),
        (OSError("no space left"), "no space left"),
        (FloatingPointError("the model gave NaN"), "the model gave NaN"),
        (
            torch.OutOfMemoryError("tried to allocate 3 GiB"),
            "out of memory; start app.py with --offload model or --device cpu",
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


def test_nothing_is_left_when_saving_fails(
    app, pipeline, room: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full_disk(folder: Path, *_: Any, **__: Any) -> None:
        write_image(folder / "half.png", room)
        raise OSError("no space left on device")

    monkeypatch.setattr(app, "write_walk", full_disk)
    with pytest.raises(OSError, match="no space left"):
        app.Guide(pipeline, SETTINGS, tmp_path).save(app.Visit(room).turned(10))
    assert list(tmp_path.iterdir()) == []


# ---- served -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(app, environment: Path, pipeline: GenexPipeline, pictures: Path) -> Iterator[str]:
    """Address of a running demo whose examples are `pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "EXAMPLES", pictures)
        page = app.build_interface(
            app.Guide(pipeline, SETTINGS, environment), max_waiting=4, delete_cache=(3600, 3600)
        )
    _, url, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, run_history=False
    )
    yield url
    page.close(verbose=False)
    assert list(environment.rglob("walk.mp4")) == []  # delete_cache: results go with the server


class Client:
    """A session that speaks to the server without a browser."""

    def __init__(self, url: str, folder: Path) -> None:
        module = pytest.importorskip("gradio_client")
        self.client = module.Client(url, verbose=False, download_files=folder)
        self.handle = module.handle_file

    def start(self, path: Path) -> tuple[str, ...]:
        return self.client.predict(self.handle(str(path)), api_name="/start")

    def call(self, name: str, *values: float) -> Any:
        return self.client.predict(*values, api_name=f"/{name}")


@pytest.fixture
def client(server: str, tmp_path: Path) -> Client:
    return Client(server, tmp_path / "downloads")


def test_saved_walk_is_what_explore_writes(
    client: Client, pictures: Path, model: str, tmp_path: Path
):
    client.start(pictures / "room.jpg")
    for name, value in (("forward", 3), ("turn", -20), ("turn", -25), ("forward", 7), ("turn", 90)):
        _, status, path, *_ = client.call(name, value)
    assert path == "forward 3, turn -45, forward 7, turn 90"
    ahead, left = 1.2 + 2.8 * math.sqrt(0.5), 2.8 * math.sqrt(0.5)
    assert f"10 frames, 4.0 m walked; now {ahead:.2f} m ahead of" in status
    assert f"{left:.2f} m to the left of the start, heading 45.0 degrees" in status
    served = {Path(file).name: Path(file) for file in client.call("save")}
    assert set(served) == {"walk.mp4", "path.json", "poses.json"}

    flags = ["--image", str(pictures / "room.jpg"), "--path", path, "--output_dir", str(tmp_path),
             "--model", model, "--tiny", "--num_inference_steps", "1", "--device", "cpu",
             "--save_mp4"]  # fmt: skip
    assert explore.main(flags) == 0
    frames = read_video(served["walk.mp4"])
    assert frames.shape == (1 + 3 + 7 + 1, 32, 64, 3)
    # Rounding in another thread can flip a level, and with it a block of the encoder.
    difference = np.abs(frames.astype(int) - read_video(tmp_path / "walk.mp4"))
    assert difference.mean() < 4
    assert np.array_equal(difference[:2], np.zeros_like(difference[:2]))
    assert read_spherical_video(served["walk.mp4"].read_bytes())
    moves = read_path(served["path.json"])
    assert moves == read_path(tmp_path / "path.json")
    assert moves == [Move(0.0, 3), Move(315.0, 7), Move(90.0, 0)]
    poses, expected = (json.loads(file.read_text()) for file in
                       (served["poses.json"], tmp_path / "poses.json"))  # fmt: skip
    assert poses["poses"] == expected["poses"]
    assert poses["metres_per_frame"] == STEP_M
    assert poses["made_with"] == asdict(SETTINGS)


def test_undo_and_reset_show_what_was_there_before(client: Client, pictures: Path):
    pages = [
        client.start(pictures / "room.jpg"),
        client.call("turn", 30),
        client.call("forward", 2),
    ]
    assert len({page[0] for page in pages}) == 3
    assert [page[2] for page in pages] == ["", "turn 30", "turn 30, forward 2"]
    assert client.call("undo") == pages[1]
    assert client.call("forward", 2) == pages[2]
    assert client.call("reset") == pages[0]


def test_view_shows_the_last_frame(client: Client, pictures: Path, room: np.ndarray):
    client.start(pictures / "room.jpg")
    frame, *_ = client.call("turn", 45)
    page = html.unescape(re.search('srcdoc="([^"]*)"', frame)[1])
    jpeg = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]*)", page)[1])
    shown = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert np.abs(shown.astype(float) - turn(room, 45.0)).mean() < 3  # JPEG of quality 92
    assert "<h1>turn 45</h1>" in page


def test_sessions_do_not_see_each_other(
    client: Client, server: str, pictures: Path, tmp_path: Path
):
    other = Client(server, tmp_path / "other")
    client.start(pictures / "room.jpg")
    client.call("turn", 10)
    with pytest.raises(Exception, match="there is no panorama yet; upload one or choose"):
        other.call("forward", 1)
    other.start(pictures / "outdoor.jpg")
    assert other.call("turn", 20)[2] == "turn 20"
    assert client.call("turn", 5)[2] == "turn 15"


def test_mistakes_are_answered_in_one_line(
    client: Client, pictures: Path, photo: Path, text: Path, environment: Path
):
    def message(name: str, *values: Any) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 (the message is what is tested)
            client.start(*values) if name == "start" else client.call(name, *values)
        assert "\n" not in str(caught.value)
        assert str(environment) not in str(caught.value)
        return str(caught.value)

    for name in ("forward", "turn", "undo", "reset", "save"):
        assert message(name) == "there is no panorama yet; upload one or choose an example"
    assert message("start", photo).startswith("panorama is 150x100; width must be 2 x height or")
    assert message("start", text).startswith("notes.png: not a readable image")
    client.start(pictures / "room.jpg")
    assert message("undo") == "there is no move to undo; this is the start"
    assert message("save") == "there is no walk to save yet; turn or walk first"
    assert message("forward", 8) == "Value 8 is greater than maximum value 7."


def test_api_cannot_read_files_of_the_server(server: str, pictures: Path):
    """Posted by hand: the client would upload the file first."""
    httpx = pytest.importorskip("httpx")
    address = f"{server}gradio_api/call/start"
    payload = {"path": str(pictures / "room.jpg"), "meta": {"_type": "gradio.FileData"}}
    for data in (payload, {"path": payload["path"]}):
        event = httpx.post(address, json={"data": [data]}).json()["event_id"]
        assert httpx.get(f"{address}/{event}", timeout=60).text.startswith("event: error")


# ---- the page -----------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on PATH")
def test_page_walks_turns_and_saves(server: str, pictures: Path, photo: Path, tmp_path: Path):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(60_000)
        problems = watch(page, server)
        page.goto(server)
        viewer = page.frame_locator("#viewer iframe")
        page.locator("input[type=file]").first.set_input_files(str(pictures / "room.jpg"))
        viewer.locator("html[data-viewer=load]").wait_for()
        assert viewer.locator("h1").inner_text() == "start"

        page.get_by_role("spinbutton", name="Frames").fill("3")
        page.get_by_role("spinbutton", name="Frames").press("Enter")
        page.locator("#metres", has_text="1.2 m").wait_for()
        page.get_by_role("button", name="Forward", exact=True).click()
        page.locator("#status", has_text="3 frames, 1.2 m walked").wait_for()
        page.get_by_role("button", name="Left", exact=True).click()
        page.locator("#status", has_text="heading 330.0 degrees").wait_for()
        assert page.locator("#path textarea").input_value() == "forward 3, turn -30"
        viewer.locator("html[data-viewer=load] h1", has_text="forward 3, turn -30").wait_for()
        assert page.locator("#map circle").count() == 5  # the start, three frames, the turn
        page.get_by_role("button", name="Save the walk", exact=True).click()
        with page.expect_download() as download:
            page.locator("a[href$='walk.mp4']").last.click()
        download.value.save_as(tmp_path / "walk.mp4")

        page.get_by_role("button", name="Undo", exact=True).click()
        page.locator("#status", has_text="heading 0.0 degrees").wait_for()
        assert page.locator("#path textarea").input_value() == "forward 3"
        assert page.locator("a[href$='walk.mp4']").count() == 0  # of a walk that is no more
        page.locator("img[src*='outdoor.jpg']").click()
        page.locator("#status", has_text="0 frames").wait_for()
        assert problems == []
        page.get_by_role("button", name="Remove Image").first.click()
        page.locator("input[type=file]").first.set_input_files(str(photo))
        page.get_by_text("width must be 2 x height").first.wait_for()
        browser.close()
    assert len(read_video(tmp_path / "walk.mp4")) == 5
    assert read_spherical_video((tmp_path / "walk.mp4").read_bytes())


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
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of temporary files while `cli.main` runs in this process."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "restored afterwards")
    return tmp_path


@pytest.mark.usefixtures("app")
def test_command_serves_and_leaves_nothing_behind(
    command: Path, model: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    import gradio as gr

    made_with = {}

    def visit(page: gr.Blocks) -> None:
        """What happens until Ctrl-C."""
        client = Client(page.local_url, command / "downloads")
        client.start(pictures / "room.jpg")
        assert client.call("forward", 2)[2] == "forward 2"
        files = {Path(file).name: Path(file) for file in client.call("save")}
        made_with.update(json.loads(files["poses.json"].read_text())["made_with"])
        assert [path.name[:10] for path in command.glob("genex*")] == ["genex_app_"]
        raise KeyboardInterrupt

    monkeypatch.setattr(gr.Blocks, "block_thread", visit)
    flags = ["--tiny", "--model", model, "--num_inference_steps", "2", "--device", "cpu"]
    assert cli.main(flags) == 0
    assert capsys.readouterr().out.startswith("open http://127.0.0.1:")
    assert list(command.glob("genex*")) == []
    assert made_with == asdict(SETTINGS) | {"num_inference_steps": 2}


@pytest.mark.usefixtures("app", "command")
def test_command_names_the_port_that_is_taken(model: str, capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ["--tiny", "--model", model, "--device", "cpu", "--server_port", str(port)]
        assert cli.main(flags) == 2
    message = f"cannot serve at --server_name 127.0.0.1 --server_port {port} ("
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_inference_steps", "0"], "num_inference_steps is 0; use 1 or more"),
        (["--offload", "model"], "offload 'model' needs an accelerator"),
    ],
)
@pytest.mark.usefixtures("app", "command")
def test_command_refuses_before_it_serves(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["--device", "cpu", *flags]) == 2
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
    assert list(command.glob("genex*")) == []


def test_root_file_is_the_command():
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py"), "--help"], capture_output=True, text=True, check=True
    )
    for flag in ("--tiny", "--model", "--unet", "--server_name", "--server_port", "--share"):
        assert flag in done.stdout
