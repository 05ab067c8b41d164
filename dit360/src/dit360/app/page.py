"""Layout of the demo: three tabs, one queue in front of the model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData, ImageData

from dit360.app.examples import PHOTO_FOV_DEG, Example, render_examples
from dit360.app.painting import FLAT_SIZE, TINT
from dit360.app.studio import Studio, shown_to_user
from dit360.captions import TRIGGER
from dit360.editing.place import MAX_FOV_DEG, MIN_FOV_DEG

INTRODUCTION = """# DiT360: panoramas from text
A panorama from a prompt, a new content for a part of one, or a panorama around an ordinary photo.
Results can be downloaded for {minutes} minutes."""
MAX_SEED = 2**31 - 1
MAX_STEPS = 100
FLAT, VIEW = "Flat panorama", "Perspective view"
# A pipeline keeps the steps of its schedule in itself, and one job fills a GPU.
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}

Guard = Callable[[Callable[..., Any]], Callable[..., Any]]


def build_interface(
    studio: Studio,
    *,
    prompts: Sequence[str],
    max_waiting: int,
    delete_cache: tuple[int, int],
) -> gr.Blocks:
    """Build the page; the caller launches it.

    Args:
        studio: the model and where results go.
        prompts: examples of the first tab.
        max_waiting: requests that may queue; further ones are refused.
        delete_cache: seconds between two cleanings, and the age from which a file or a painted
            mask is deleted.
    """
    guard = shown_to_user(studio.folder)
    examples = render_examples(studio.folder / "examples")
    with gr.Blocks(title="DiT360", analytics_enabled=False, delete_cache=delete_cache) as page:
        gr.Markdown(INTRODUCTION.format(minutes=delete_cache[1] // 60))
        with gr.Tab("Text"):
            _text_tab(studio, guard, prompts)
        with gr.Tab("Inpaint"):
            _inpaint_tab(studio, guard, examples, delete_cache[1])
        with gr.Tab("Outpaint"):
            _outpaint_tab(studio, guard, examples)
    page.queue(max_size=max_waiting)
    return page


def _text_tab(studio: Studio, guard: Guard, prompts: Sequence[str]) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            prompt = _prompt_box("text")
            settings = _sampling(studio.sampling)
            run = gr.Button("Generate", variant="primary")
            gr.Examples([[text] for text in prompts], prompt, label="Examples")
        with gr.Column(scale=3):
            shown = _result("text")
    run.click(
        guard(studio.generate), [prompt, *settings], shown,
        api_name="generate", show_progress_on=shown[1], **ONE_AT_A_TIME,
    )  # fmt: skip


def _inpaint_tab(
    studio: Studio, guard: Guard, examples: Sequence[Example], keep_seconds: int
) -> None:
    canvas = gr.State(time_to_live=keep_seconds)
    with gr.Row():
        with gr.Column(scale=2):
            image = _upload("Panorama", studio.folder)
            gallery = _gallery(image, [example.panorama for example in examples])
            prompt = _prompt_box("inpaint")
            settings = _editing(studio)
            run = gr.Button("Inpaint", variant="primary")
            overview = gr.Image(
                label="Mask so far", interactive=False, buttons=[], elem_id="overview"
            )
        with gr.Column(scale=3):
            editor = _editor(studio.folder)
            way = gr.Radio([FLAT, VIEW], value=FLAT, type="index", label="Paint in")
            with gr.Row():
                yaw = _angle("View yaw", 180, 0)
                pitch = _angle("View pitch", 90, 0)
                fov = gr.Slider(20, 120, 90, step=1, label="View fov")
            with gr.Row():
                add = gr.Button("Add strokes and show this view")
                clear = gr.Button("Clear mask")
            shown = _result("inpaint")
    drawn = [canvas, editor, overview]
    image.upload(guard(studio.open_panorama), image, drawn, api_name="open_panorama")
    image.clear(lambda: (None, None, None), None, drawn, api_visibility="private")
    gallery.click(
        lambda index: (
            examples[index].panorama, examples[index].prompt, *studio.open_example(examples[index])
        ),
        gallery, [image, prompt, *drawn], api_visibility="private",
    )  # fmt: skip
    add.click(guard(studio.paint), [canvas, editor, way, yaw, pitch, fov], drawn, api_name="paint")
    clear.click(guard(studio.clear), canvas, drawn, api_name="clear")
    run.click(
        guard(studio.inpaint), [canvas, editor, prompt, *settings], shown,
        api_name="inpaint", show_progress_on=shown[1], **ONE_AT_A_TIME,
    )  # fmt: skip


def _outpaint_tab(studio: Studio, guard: Guard, examples: Sequence[Example]) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            photo = _upload("Photo", studio.folder)
            gallery = _gallery(photo, [example.photo for example in examples])
            fov = gr.Slider(
                MIN_FOV_DEG, MAX_FOV_DEG, 90, step=1, label="Photo fov",
                info="horizontal degrees: 74 for 24 mm, 54 for 35 mm, 40 for 50 mm",
            )  # fmt: skip
            yaw, pitch = _angle("Photo yaw", 180, 0), _angle("Photo pitch", 90, 0)
            roll = _angle("Photo roll", 180, 0)
            prompt = _prompt_box("outpaint")
            settings = _editing(studio)
            run = gr.Button("Outpaint", variant="primary")
        with gr.Column(scale=3):
            preview = gr.Image(
                label="Place on the sphere", interactive=False, buttons=[], elem_id="place"
            )
            shown = _result("outpaint")
    camera = [photo, fov, yaw, pitch, roll]
    gr.on(
        [photo.upload, photo.clear, *(slider.change for slider in camera[1:])],
        guard(studio.preview_photo), camera, preview,
        api_name="preview_photo", trigger_mode="always_last", show_progress="hidden",
    )  # fmt: skip
    gallery.click(
        lambda index: (
            examples[index].photo, examples[index].prompt, PHOTO_FOV_DEG, 0, 0, 0,
            studio.preview_photo(examples[index].photo, PHOTO_FOV_DEG, 0, 0, 0),
        ),
        gallery, [photo, prompt, *camera[1:], preview], api_visibility="private",
    )  # fmt: skip
    run.click(
        guard(studio.outpaint), [*camera, prompt, *settings], shown,
        api_name="outpaint", show_progress_on=shown[1], **ONE_AT_A_TIME,
    )  # fmt: skip


# ---- parts --------------------------------------------------------------------------------------


def _prompt_box(name: str) -> gr.Textbox:
    return gr.Textbox(
        label="Prompt", lines=3, placeholder="what surrounds the viewer, and where",
        info=f'"{TRIGGER}" is put in front', elem_id=f"{name}-prompt",
    )  # fmt: skip


def _sampling(defaults: Any) -> list[Any]:
    """Seed, steps and guidance; the defaults are a `Settings` or an `EditSettings`."""
    seed = gr.Number(0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed")
    with gr.Row():
        steps = gr.Slider(
            1, MAX_STEPS, defaults.num_inference_steps, step=1, precision=0, label="Steps"
        )
        guidance = gr.Slider(0, 10, defaults.guidance_scale, step=0.1, label="Guidance")
    return [seed, steps, guidance]


def _editing(studio: Studio) -> list[Any]:
    tau = gr.Slider(
        0, 100, studio.editing.tau, step=1, label="Tau",
        info="smaller follows the kept part more closely",
    )  # fmt: skip
    return [tau, *_sampling(studio.editing)]


def _angle(label: str, limit: int, value: int) -> gr.Slider:
    return gr.Slider(-limit, limit, value, step=1, label=label)


def _result(name: str) -> list[Any]:
    """Viewer, flat image, file, prompt as sent, numbers."""
    viewer = gr.HTML(elem_id=f"{name}-viewer")
    status = gr.Markdown(elem_id=f"{name}-status")
    # Not gradio's "share" button, which uploads to another site.
    flat = gr.Image(label="Panorama", interactive=False, buttons=["download", "fullscreen"])
    file = gr.File(label="Photo-sphere PNG", interactive=False)
    sent = gr.Textbox(label="Prompt as sent", interactive=False, elem_id=f"{name}-sent")
    return [viewer, flat, file, sent, status]


def _upload(label: str, folder: Path) -> gr.Image:
    image = gr.Image(
        label=label, sources=["upload", "clipboard"], buttons=[],
        elem_id=f"{label.lower()}-upload",
    )  # fmt: skip
    # Unopened: our checks explain better than gradio what is wrong with a file.
    image.preprocess = partial(_upload_path, folder)
    return image


def _gallery(image: gr.Image, paths: Sequence[str]) -> gr.Dataset:
    # Not gr.Examples, which makes the image anew, with gradio's own checks.
    return gr.Dataset(
        components=[image], samples=[[path] for path in paths], type="index", label="Examples"
    )


def _editor(folder: Path) -> gr.ImageEditor:
    """Brush and eraser over one picture; functions get the strokes alone, (h, w) bool."""
    color = "#{:02x}{:02x}{:02x}".format(*TINT)
    editor: Any = gr.ImageEditor(
        label="Paint over what shall become new", sources=[], transforms=[], layers=False,
        brush=gr.Brush(colors=[color], color_mode="fixed", default_size=24),
        canvas_size=(FLAT_SIZE[1], FLAT_SIZE[0]), elem_id="editor", buttons=[],
    )  # fmt: skip
    editor.preprocess = partial(_read_strokes, folder, editor.preprocess)
    return editor


def _upload_path(folder: Path, payload: ImageData | None) -> str | None:
    """The uploaded file; gradio refuses other paths only in a payload that calls itself a file."""
    if payload is None:
        return None
    _check_uploaded(folder, payload.path)
    return payload.path


def _read_strokes(
    folder: Path, read: Callable[[EditorData], Any], payload: EditorData | None
) -> np.ndarray | None:
    """Where anything was painted; None without a stroke."""
    if payload is None:
        return None
    files: list[FileData | None] = [payload.background, payload.composite, *payload.layers]
    for file in files:
        if file is not None:
            _check_uploaded(folder, file.path)
    with shown_to_user(folder):
        layers = read(payload)["layers"]
    if len({layer.shape for layer in layers}) > 1:
        raise gr.Error("the layers differ in size; paint again", print_exception=False)
    return np.any([layer[..., 3] > 0 for layer in layers], axis=0) if layers else None


def _check_uploaded(folder: Path, path: str | None) -> None:
    if not Path(path or "").resolve().is_relative_to(folder.resolve()):
        raise gr.Error("that is not an uploaded file; upload it first", print_exception=False)
