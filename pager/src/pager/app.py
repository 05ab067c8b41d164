"""The demo in the browser: one panorama in; maps, a 360-degree view, a point cloud, files out.

Nothing is fetched by the page, and all uploads and results lie in one folder that the caller owns.
"""

import gc
import html
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from pager.export import write_prediction
from pager.model import Modality
from pager.pipeline import PagerPipeline, Precision, Prediction, choose_device, merge
from shared_pano_utils.imageio import read_erp
from shared_pano_utils.viewer import write_viewer

try:
    import gradio as gr
    from gradio.data_classes import ImageData
except ImportError as error:
    raise ImportError("the demo in the browser needs gradio: pip install 'pager[app]'") from error

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).parents[2] / "examples"
MODALITIES: dict[str, Modality] = {
    "Depth": "depth",
    "Metric depth": "depth",
    "Surface normals": "normals",
}
VIEWER_HEIGHT_PX = 480
# Room for a second model of the same size, and as much again for activations and maps.
FREE_PER_LOADED = 2

INTRODUCTION = """# PaGeR: depth and surface normals of panoramas
Upload a full 360-degree panorama (width = 2 x height) or take an example. Results can be downloaded
for {minutes} minutes."""


# ---- models -------------------------------------------------------------------------------------


class ModelShelf:
    """Checkpoints by task, loaded when first asked for; one stays in memory if that is small."""

    def __init__(
        self,
        checkpoints: Mapping[str, str],
        *,
        revision: str | None = None,
        pretrained_path: str | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        max_depth: float | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            checkpoints: key of `MODALITIES` -> hub id, folder or .safetensors file.
            revision: as in `PagerPipeline.from_pretrained`, like the rest.
            pretrained_path: base model instead of the stored one.
            device: "auto" takes cuda, mps or cpu.
            precision: "auto" is bfloat16 on cuda and float32 elsewhere.
            max_depth: metres, instead of the checkpoints' range.
        """
        self.checkpoints = dict(checkpoints)
        self.device = choose_device(device)
        self._options: dict[str, Any] = {
            "revision": revision,
            "pretrained_path": pretrained_path,
            "device": str(self.device),
            "precision": precision,
            "max_depth": max_depth,
        }
        self._loaded: dict[str, PagerPipeline] = {}
        # A second prediction at the same time would compete for the same cores and memory.
        self._lock = threading.Lock()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Tasks whose model is in memory."""
        return tuple(self._loaded)

    def predict(self, task: str, rgb: np.ndarray) -> Prediction:
        """Predict with the model of `task`; `rgb` is (H, W, 3) uint8."""
        with self._lock:
            return self._get(task)(rgb)

    def _get(self, task: str) -> PagerPipeline:
        if task not in self._loaded:
            self._make_room()
            path = self.checkpoints[task]
            pipeline = PagerPipeline.from_pretrained(path, **self._options)
            if pipeline.modality != MODALITIES[task]:
                raise ValueError(
                    f"{path} predicts {pipeline.modality}, but is given for {task!r}; "
                    f"start app.py with a checkpoint of {MODALITIES[task]} there"
                )
            self._loaded[task] = pipeline
        return self._loaded[task]

    def _make_room(self) -> None:
        largest = max((model_bytes(p.model) for p in self._loaded.values()), default=0)
        if free_bytes(self.device) >= FREE_PER_LOADED * largest:
            return
        self._loaded.clear()
        gc.collect()  # diffusers models hold reference cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


def model_bytes(model: torch.nn.Module) -> int:
    """Memory of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; cpu and mps share that of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


# ---- one request --------------------------------------------------------------------------------


def read_panorama(path: str | Path, max_width: int) -> np.ndarray:
    """Read a panorama, reduced to `max_width` if it is wider, (H, W, 3) uint8.

    Raises:
        ValueError: not an image, or width != 2 x height.
    """
    rgb = read_erp(path)
    if rgb.shape[1] <= max_width:
        return rgb
    # Area averages reach over no border, so the seam at the back stays closed.
    size = (max_width // 2 * 2, max_width // 2)
    return np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))


def viewer_frame(folder: Path, panoramas: Mapping[str, np.ndarray | Path], title: str) -> str:
    """HTML of a frame that holds a 360-degree viewer of `panoramas` (label -> image)."""
    path = folder / "viewer.html"
    write_viewer(path, panoramas, title=title)
    page = path.read_text(encoding="utf-8")
    path.unlink()
    # Without allow-same-origin the page cannot reach the app, whatever the file's name contains.
    return (
        '<iframe title="360-degree view" sandbox="allow-scripts" allowfullscreen '
        f'style="width: 100%; height: {VIEWER_HEIGHT_PX}px; border: 0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def describe(prediction: Prediction, size: tuple[int, int], seconds: float) -> str:
    """One line below the button: size, depth range and what its unit means, time."""
    parts = [f"{size[1]} x {size[0]} pixels"]
    if prediction.depth is not None:
        unit = "m" if prediction.is_metric else "(metres up to one unknown factor)"
        parts.append(f"depth {prediction.depth.min():.2f} to {prediction.depth.max():.2f} {unit}")
    return ", ".join([*parts, f"{seconds:.1f} s"])


@contextmanager
def shown_to_user(folder: Path) -> Iterator[None]:
    """Turn what a user can mend into a message on the page, without the paths below `folder`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = "out of memory; start app.py with --precision bfloat16 or --device cpu"
        logger.warning("%s (%s)", message, error)
        raise gr.Error(message, print_exception=False) from error
    except (ValueError, OSError) as error:
        private = re.escape(str(folder)) + r"[\\/]\w+[\\/]"
        message = re.sub(private, "", " ".join(str(error).split()))
        logger.warning("%s", message)
        # gradio renders the message as HTML.
        raise gr.Error(html.escape(message, quote=False), print_exception=False) from error


class Predictor:
    """The function behind the button."""

    def __init__(self, shelf: ModelShelf, folder: Path, max_width: int) -> None:
        self.shelf, self.folder, self.max_width = shelf, folder, max_width

    def __call__(
        self,
        path: str | None,
        task: str,
        with_points: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (gradio finds it by its default)
    ) -> tuple[str, str, str, str | None, list[str]]:
        """Predict an uploaded panorama and write its files.

        Args:
            path: the upload, None if there is none.
            task: key of `MODALITIES`.
            with_points: also make a point cloud; surface normals then run the depth model too.
            progress: bar on the page.

        Returns:
            Status line, colour map, viewer, point cloud (GLB) and all files.
        """
        started = time.perf_counter()
        with shown_to_user(self.folder):
            if path is None:
                raise ValueError("there is no panorama yet; upload one or choose an example")
            rgb = read_panorama(path, self.max_width)
            needs_depth = with_points and MODALITIES[task] != "depth"
            tasks = [task, "Depth"] if needs_depth else [task]
            predictions = []
            for number, name in enumerate(tasks):
                progress((number, len(tasks) + 1), desc=f"{name} (the first time loads the model)")
                predictions.append(self.shelf.predict(name, rgb))
            progress((len(tasks), len(tasks) + 1), desc="writing files")
            prediction = merge(predictions)
            results = self._write(Path(path).name, rgb, prediction, task, with_points)
        return describe(prediction, rgb.shape[:2], time.perf_counter() - started), *results

    def _write(
        self, name: str, rgb: np.ndarray, prediction: Prediction, task: str, with_points: bool
    ) -> tuple[str, str, str | None, list[str]]:
        """Colour map, viewer, point cloud and all files, in a new folder that is whole or gone."""
        folder = self.folder / secrets.token_hex(16)
        try:
            files = write_prediction(
                folder,
                rgb,
                prediction,
                source=name,
                points="glb" if with_points else None,
                html=True,
            )
            preview = folder / f"{MODALITIES[task]}_preview.png"
            views = {task: preview, "RGB": rgb}
            frame = viewer_frame(folder, views, f"PaGeR: {name}")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        cloud = str(folder / "points.glb") if with_points else None
        return str(preview), frame, cloud, [str(file) for file in files]


# ---- page ---------------------------------------------------------------------------------------


def build_interface(
    shelf: ModelShelf,
    folder: Path,
    *,
    max_width: int,
    concurrency: int,
    max_waiting: int,
    delete_cache: tuple[int, int],
) -> gr.Blocks:
    """Build the page; the caller launches it.

    Args:
        shelf: the models; its tasks are the choices.
        folder: where results go, the same as the environment's ``GRADIO_TEMP_DIR``.
        max_width: of a panorama, pixels; wider ones are reduced.
        concurrency: requests that run at the same time; their predictions take turns.
        max_waiting: requests that may queue; further ones are refused.
        delete_cache: seconds between two cleanings, and the age from which a file is deleted.
    """
    tasks = list(shelf.checkpoints)
    with gr.Blocks(title="PaGeR", analytics_enabled=False, delete_cache=delete_cache) as page:
        gr.Markdown(INTRODUCTION.format(minutes=delete_cache[1] // 60))
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(label="Panorama", sources=["upload", "clipboard"])
                # Unopened: read_panorama explains better than gradio what is wrong with a file.
                image.preprocess = partial(_upload_path, folder)
                task = gr.Radio(tasks, value=tasks[0], label="Predict")
                with_points = gr.Checkbox(True, label="Point cloud")
                button = gr.Button("Run", variant="primary")
                status = gr.Markdown(elem_id="status")
                examples = sorted(str(path) for path in EXAMPLES.glob("*.jpg"))
                if examples:
                    # Not gr.Examples, which makes the image anew, with gradio's own checks.
                    gallery = gr.Dataset(
                        components=[image], samples=[[path] for path in examples], type="index",
                        label="Examples",
                    )  # fmt: skip
                    gallery.click(
                        lambda index: examples[index], gallery, image, api_visibility="private"
                    )
            with gr.Column(scale=3):
                # Not gradio's "share" button, which uploads to another site.
                picture = gr.Image(
                    label="Colour map", interactive=False, buttons=["download", "fullscreen"]
                )
                viewer = gr.HTML(elem_id="viewer")
                cloud = gr.Model3D(label="Point cloud", interactive=False)
                files = gr.File(label="Files", file_count="multiple", interactive=False)
        button.click(
            Predictor(shelf, folder, max_width),
            [image, task, with_points],
            [status, picture, viewer, cloud, files],
            api_name="predict",
            concurrency_limit=concurrency,
        )
    page.queue(max_size=max_waiting)
    return page


def _upload_path(folder: Path, payload: ImageData | None) -> str | None:
    """The uploaded file; gradio refuses other paths only in a payload that calls itself a file."""
    if payload is None:
        return None
    if not Path(payload.path or "").resolve().is_relative_to(folder.resolve()):
        raise gr.Error("that is not an uploaded file; upload it first", print_exception=False)
    return payload.path
