"""Editing against the original's loop written out, closed forms and the stock pipelines."""

import dataclasses
import functools
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, FluxInpaintPipeline, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from dit360 import vae
from dit360.editing import EditSettings, edit
from dit360.editing.compose import border_step, kept_psnr_db, paste_kept
from dit360.editing.inject import inject
from dit360.editing.masks import read_keep, read_source, resize_keep, token_keep
from dit360.editing.place import continue_colors, place_photo
from dit360.editing.schedule import noise_levels, plan_steps
from dit360.editing.stock import FillPipeline, inpaint_pipeline, paint
from dit360.pipeline import DiT360Pipeline
from dit360.tiny import flux_scheduler
from dit360.vae import set_vae_wrap
from shared_pano_utils import erp_to_perspective

HEIGHT, WIDTH = 64, 128
GRID = (4, 8)
KEEP = np.zeros((HEIGHT, WIDTH), bool)
KEEP[16:48, :40] = True  # reaches the seam from one side: wrapping is not replicating
SOURCE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
SETTINGS = EditSettings(
    prompt="a red room", source_prompt="a blue room", num_inference_steps=10,
    max_sequence_length=12, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(micro_flux: Path, micro_lora: Path) -> DiT360Pipeline:
    pipeline = DiT360Pipeline.from_pretrained(micro_flux)
    pipeline.load_lora_weights(micro_lora, weight_name="adapter_model.safetensors")
    set_vae_wrap(pipeline.vae, "circular")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def seen(pipeline: DiT360Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every call of the transformer."""
    calls: list[dict[str, Any]] = []
    forward = pipeline.transformer.forward

    def record(**kwargs: Any) -> Any:
        calls.append(kwargs)
        return forward(**kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", record)
    return calls


def settings_with(**changes: Any) -> EditSettings:
    return dataclasses.replace(SETTINGS, **changes)


def pixels() -> Tensor:
    return torch.from_numpy(SOURCE).movedim(-1, 0)[None] / 127.5 - 1


# ---- the original's two loops -------------------------------------------------------------------


@torch.no_grad()
def original_loops(
    pipeline: DiT360Pipeline, keep: Tensor, s: EditSettings
) -> tuple[Tensor, Tensor, int]:
    """Every step with the network, both branches to the end, attention inputs replaced.

    Wrapped mask and noise (D6, D9) and one generator (D7) are the only differences from the
    released code.
    """
    columns = [7, 0, 1, 2, 3, 4, 5, 6, 7, 0]
    order = (torch.arange(4)[:, None] * 8 + torch.tensor(columns)).flatten()
    count = s.num_inference_steps
    line = np.linspace(1, 1 / count, count)
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = slope * 32 + 0.5 - 256 * slope
    sigmas = [*(math.exp(mu) / (math.exp(mu) + 1 / line - 1)), 0.0]

    @functools.cache
    def encoded(prompt: str) -> tuple[Tensor, Tensor]:
        embeds, pooled, _ = pipeline.encode_prompt(prompt, None, max_sequence_length=12)
        return embeds, pooled

    ids = FluxPipeline._prepare_latent_image_ids(1, *GRID, "cpu", torch.float32)[order]
    evaluations = 0

    def network(states: Tensor, time: float, texts: list[str], guidance: float) -> Tensor:
        nonlocal evaluations
        evaluations += len(states)
        embeds, pooled = (torch.cat(part) for part in zip(*map(encoded, texts), strict=True))
        return pipeline.transformer(
            hidden_states=states, timestep=torch.full((len(states),), time), img_ids=ids,
            encoder_hidden_states=embeds, pooled_projections=pooled, txt_ids=torch.zeros(12, 3),
            guidance=torch.full((len(states),), guidance), return_dict=False,
        )[0]  # fmt: skip

    generator = torch.Generator().manual_seed(s.seed)
    posterior = pipeline.vae.encode(pixels()).latent_dist
    config = pipeline.vae.config
    latents = (posterior.sample(generator) - config.shift_factor) * config.scaling_factor
    noise, start = (torch.randn(1, 16, 8, 16, generator=generator) for _ in range(2))
    x0, y1, edited = (vae.pack(part)[:, order] for part in (latents, noise, start))
    mask = keep.flatten()[order]

    state = x0
    for i in range(count):
        time = i / (count + 1)
        u = network(state, time, [""], 0.0)
        control = (y1 - state) / (1 - time)
        state = state + (u + s.gamma * (control - u)) * (sigmas[i] - sigmas[i + 1])

    def replace(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, rows = args[0].clone(), mask.nonzero().flatten()
        rows = rows + tokens.shape[1] - len(mask)
        tokens[1, rows] = args[0][0, rows]
        return (tokens, *args[1:])

    projections = [
        module for name, module in pipeline.transformer.named_modules()
        if name.endswith(("attn.to_q", "attn.to_k", "attn.to_v"))
    ]  # fmt: skip
    source_prompt = s.source_prompt or s.prompt
    for i, (t, following) in enumerate(pairwise(sigmas)):
        shares = t > s.tau / 100
        hooks = [m.register_forward_pre_hook(replace) for m in projections] if shares else []
        both = torch.cat([state, edited])
        v_source, v_edit = network(both, t, [source_prompt, s.prompt], s.guidance_scale).split(1)
        for hook in hooks:
            hook.remove()
        acts = int(s.start_timestep * count) <= i < min(int(s.stop_timestep * count), count)
        pulled = -v_source + (s.eta if acts else 0) * ((x0 - state) / t + v_source)
        state = state + pulled * (t - following)
        edited = edited + (following - t) * v_edit
        if t >= s.blend_t:
            edited = torch.where(mask[:, None], state, edited)
    inner = (torch.arange(4)[:, None] * 10 + torch.arange(1, 9)).flatten()
    return vae.unpack(edited[:, inner], GRID), vae.unpack(state[:, inner], GRID), evaluations


@pytest.mark.parametrize(
    "changes",
    [
        {},  # closed form
        {"tau": 0.0, "blend_t": 0.0},
        {"tau": 100.0, "blend_t": 1.0},
        {"gamma": 0.5},
        {"eta": 0.7, "start_timestep": 0.2, "stop_timestep": 0.6, "tau": 20.0},
        {"gamma": 0.3, "eta": 0.0, "tau": 80.0, "blend_t": 0.2},
        {"source_prompt": None, "start_timestep": 0.5, "guidance_scale": 1.0},
    ],
)
def test_equals_the_original_loops(pipeline: DiT360Pipeline, changes: dict[str, Any]) -> None:
    settings = settings_with(**changes, reconstruct=True)
    keep = torch.from_numpy(token_keep(KEEP))
    edited, rebuilt, evaluations = original_loops(pipeline, keep, settings)
    assert evaluations == 30
    with torch.no_grad():
        ours, source, used = inject(pipeline, pixels(), keep, settings)
    assert source is not None
    torch.testing.assert_close(ours, edited, rtol=0, atol=1e-4)
    torch.testing.assert_close(source, rebuilt, rtol=0, atol=1e-4)
    assert used <= 30


def test_the_shipped_setting_takes_94_evaluations_and_no_inversion(
    pipeline: DiT360Pipeline, seen: list[dict[str, Any]]
) -> None:
    settings = settings_with(num_inference_steps=50, tau=50.0)
    # The shift, and with it the number of steps above t = 0.5, is that of 1024 x 2048.
    pipeline.scheduler.register_to_config(base_shift=1.8433333, max_shift=1.8433333)
    result = edit(pipeline, SOURCE, KEEP, settings)
    pipeline.scheduler.register_to_config(base_shift=0.5, max_shift=1.15)
    batches = [len(call["hidden_states"]) for call in seen]
    assert batches == [2] * 44 + [1] * 6
    assert result.evaluations == sum(batches) == 94
    assert result.reconstruction is None


def test_evaluations_of_other_settings() -> None:
    sigmas = noise_levels(flux_scheduler(), 50, 8192)

    def evaluations(**changes: Any) -> int:
        return sum(1 + step.runs_source for step in plan_steps(sigmas, settings_with(**changes)))

    assert evaluations() == 94
    assert evaluations(reconstruct=True) == 95  # the last step has eta 0
    assert evaluations(tau=100.0) == 50  # blending alone: the source needs no network
    assert evaluations(tau=0.0) == 100
    assert evaluations(eta=0.5, tau=100.0) == 94  # the blended source now does
    assert evaluations(tau=100.0, blend_t=0.0) == 51
    assert evaluations(tau=100.0, blend_t=0.0, stop_timestep=0.5) == 75


def test_copied_columns_stay_copies_in_both_branches(
    pipeline: DiT360Pipeline, seen: list[dict[str, Any]]
) -> None:
    edit(pipeline, SOURCE, KEEP, settings_with(gamma=0.5, eta=0.5, tau=30.0))
    assert {call["hidden_states"].shape[1] for call in seen} == {40}
    for call in seen:
        rows = call["hidden_states"].unflatten(1, (4, 10))
        torch.testing.assert_close(rows[:, :, 0], rows[:, :, 8], rtol=0, atol=1e-5)
        torch.testing.assert_close(rows[:, :, 9], rows[:, :, 1], rtol=0, atol=1e-5)
        assert call["img_ids"].unflatten(0, (4, 10))[0, :, 2].tolist() == [7, *range(8), 0]


def test_guidance_and_time_of_the_calls(
    pipeline: DiT360Pipeline, seen: list[dict[str, Any]]
) -> None:
    edit(pipeline, SOURCE, KEEP, settings_with(gamma=0.5, num_inference_steps=4))
    assert [call["guidance"].tolist() for call in seen[:4]] == [[0.0]] * 4
    times = [call["timestep"][0].item() for call in seen]
    assert times[:4] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert times[4:] == pytest.approx(noise_levels(flux_scheduler(), 4, 32)[:-1], abs=1e-6)
    assert all(call["guidance"].eq(3.5).all() for call in seen[4:])


def test_the_same_seed_gives_the_same_edit(pipeline: DiT360Pipeline) -> None:
    settings = settings_with(num_inference_steps=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (edit(pipeline, SOURCE, KEEP, settings) for _ in range(2))
    other = edit(pipeline, SOURCE, KEEP, dataclasses.replace(settings, seed=4))
    assert np.array_equal(first.image, second.image)
    assert not np.array_equal(first.image, other.image)
    assert torch.equal(torch.get_rng_state(), state)


def test_result_pastes_and_measures(pipeline: DiT360Pipeline) -> None:
    settings = settings_with(num_inference_steps=2, paste=4, reconstruct=True)
    result = edit(pipeline, SOURCE, KEEP, settings)
    bare = edit(pipeline, SOURCE, KEEP, dataclasses.replace(settings, paste=0))
    assert result.reconstruction is not None
    assert result.reconstruction.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(result.image[~KEEP], bare.image[~KEEP])
    assert np.array_equal(result.image[20:44, 4:36], SOURCE[20:44, 4:36])
    assert result.model_psnr_db == bare.kept_psnr_db == bare.model_psnr_db
    assert result.kept_psnr_db == kept_psnr_db(result.image, SOURCE, KEEP) > bare.kept_psnr_db
    assert result.border_step == border_step(result.image, KEEP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 101.0}, r"tau is 101; use 0"),
        ({"gamma": -0.5}, r"gamma is -0.5; use 0 to 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"method": "kontext"}, "method is 'kontext'; use one of inject, inpaint, fill"),
        ({"paste": -1}, "paste is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"max_sequence_length": 513}, "max_sequence_length is 513"),
        ({"method": "inpaint", "reconstruct": True}, "by method inject only, not by inpaint"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_with(**changes)


def test_wrong_shapes_and_pipelines_are_refused(pipeline: DiT360Pipeline) -> None:
    with pytest.raises(ValueError, match=r"the panorama has shape \(64, 96, 3\)"):
        edit(pipeline, SOURCE[:, :96], KEEP[:, :96], SETTINGS)
    with pytest.raises(ValueError, match="the height is 40"):
        edit(pipeline, SOURCE[:40, :80], KEEP[:40, :80], SETTINGS)
    with pytest.raises(ValueError, match=r"32 of 32 tokens .* nothing is left to paint"):
        edit(pipeline, SOURCE, np.ones_like(KEEP), SETTINGS)
    with pytest.raises(TypeError, match="method fill needs a FillPipeline"):
        edit(pipeline, SOURCE, KEEP, settings_with(method="fill"))


# ---- stock pipelines ----------------------------------------------------------------------------


def without_ip(pipeline: DiT360Pipeline) -> dict[str, Any]:
    names = ("image_encoder", "feature_extractor")
    return {name: part for name, part in pipeline.components.items() if name not in names}


def fill_parts(pipeline: DiT360Pipeline) -> dict[str, Any]:
    config = dict(pipeline.transformer.config) | {"in_channels": 384, "out_channels": 64}
    torch.manual_seed(1)
    return without_ip(pipeline) | {"transformer": FluxTransformer2DModel.from_config(config).eval()}


@pytest.mark.parametrize("method", ["inpaint", "fill"])
def test_stock_methods_without_padding_are_the_stock_pipelines(
    pipeline: DiT360Pipeline, method: str
) -> None:
    settings = settings_with(method=method, num_inference_steps=3)
    repaint = Image.fromarray(np.where(KEEP, 0, 255).astype(np.uint8))
    if method == "inpaint":
        ours, stock = inpaint_pipeline(pipeline), FluxInpaintPipeline(**pipeline.components)
    else:
        parts = fill_parts(pipeline)
        ours, stock = FillPipeline(**parts), FluxFillPipeline(**parts)
    ours.padding_n = 0
    for each in (ours, stock):
        each.set_progress_bar_config(disable=True)
    expected = stock(
        prompt=settings.prompt, image=Image.fromarray(SOURCE), mask_image=repaint, height=HEIGHT,
        width=WIDTH, strength=1.0, num_inference_steps=3, guidance_scale=3.5, output_type="latent",
        generator=torch.Generator().manual_seed(3), max_sequence_length=12,
    ).images  # fmt: skip
    with torch.no_grad():
        painted = paint(ours, Image.fromarray(SOURCE), repaint, settings)
    assert torch.equal(painted, vae.unpack(expected, GRID))
    ours.padding_n = 1
    with torch.no_grad():
        padded = paint(ours, Image.fromarray(SOURCE), repaint, settings)
    assert (padded - painted).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["inpaint", "fill"])
def test_stock_methods_wrap_their_tokens(
    pipeline: DiT360Pipeline, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = fill_parts(pipeline) if method == "fill" else {}
    chosen: Any = FillPipeline(**parts) if method == "fill" else pipeline
    chosen.set_progress_bar_config(disable=True)
    calls: list[dict[str, Any]] = []
    forward = chosen.transformer.forward

    def record(**kwargs: Any) -> Any:
        calls.append(kwargs)
        return forward(**kwargs)

    monkeypatch.setattr(chosen.transformer, "forward", record)
    result = edit(chosen, SOURCE, KEEP, settings_with(method=method, num_inference_steps=3))
    assert result.evaluations == len(calls) == 3
    for call in calls:
        rows = call["hidden_states"].unflatten(1, (4, 10))
        torch.testing.assert_close(rows[:, :, 0], rows[:, :, 8], rtol=0, atol=1e-5)
        torch.testing.assert_close(rows[:, :, 9], rows[:, :, 1], rtol=0, atol=1e-5)
        assert call["img_ids"].unflatten(0, (4, 10))[0, :, 2].tolist() == [7, *range(8), 0]


def test_inpaint_ends_with_the_latents_of_what_is_kept(pipeline: DiT360Pipeline) -> None:
    settings = settings_with(method="inpaint", num_inference_steps=3)
    repaint = Image.fromarray(np.where(KEEP, 0, 255).astype(np.uint8))
    with torch.no_grad():
        painted = paint(inpaint_pipeline(pipeline), Image.fromarray(SOURCE), repaint, settings)
        generator = torch.Generator().manual_seed(3)
        source = vae.encode(pipeline.vae, pixels(), generator=generator)
    cells = torch.from_numpy(KEEP[::8, ::8])
    torch.testing.assert_close(painted[..., cells], source[..., cells], rtol=0, atol=1e-5)
    assert (painted - source)[..., ~cells].abs().mean() > 0.1


# ---- masks --------------------------------------------------------------------------------------


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def test_white_is_kept_or_painted_and_soft_edges_are_not_white(tmp_path: Path) -> None:
    grey = np.zeros((32, 64), np.uint8)
    grey[8:24, 10:30] = 255
    grey[8:24, 30] = 254
    path = save(tmp_path / "mask.png", grey)
    keep = read_keep(path, 32, "outpaint")
    assert np.array_equal(keep, grey == 255)
    assert np.array_equal(read_keep(path, 32, "inpaint"), ~keep)
    assert np.array_equal(read_keep(path, 32, "outpaint", 128), grey > 0)
    # Any size: nearest, as PIL does.
    double = read_keep(path, 64, "outpaint")
    assert np.array_equal(double, keep.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "P"])
def test_masks_of_any_mode(tmp_path: Path, mode: str) -> None:
    grey = np.zeros((32, 64), np.uint8)
    grey[:, :20] = 255
    Image.fromarray(grey).convert(mode).save(tmp_path / "mask.png")
    assert np.array_equal(read_keep(tmp_path / "mask.png", 32, "outpaint"), grey == 255)


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    def refused(array: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_keep(save(tmp_path / "mask.png", array), 32, "outpaint")

    refused(np.full((32, 64), 255, np.uint8), "white everywhere")
    refused(np.full((32, 64), 250, np.uint8), r"black everywhere \(its largest value is 250\)")
    refused(np.eye(40, 60, dtype=np.uint8) * 255, "60x40; it must be twice as wide")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_keep(tmp_path / "missing.png", 32, "outpaint")


def test_sources_are_resized_bicubically_and_must_be_panoramas(tmp_path: Path) -> None:
    path = save(tmp_path / "erp.png", SOURCE)
    assert np.array_equal(read_source(path, HEIGHT), SOURCE)
    assert np.array_equal(read_source(path, 32), np.array(Image.fromarray(SOURCE).resize((64, 32))))
    with pytest.raises(ValueError, match="96x64; width must be 2 x height"):
        read_source(save(tmp_path / "photo.png", SOURCE[:, :96]), HEIGHT)


def test_a_token_is_kept_by_its_middle_pixel() -> None:
    keep = np.zeros((32, 64), bool)
    keep[8, 8] = keep[24, 40] = True
    expected = np.zeros((2, 4), bool)
    expected[0, 0] = expected[1, 2] = True
    assert np.array_equal(token_keep(keep), expected)
    path_rule = np.asarray(Image.fromarray(keep).resize((4, 2), Image.Resampling.NEAREST))
    assert np.array_equal(token_keep(keep), path_rule)
    with pytest.raises(ValueError, match=r"0 of 8 tokens .* nothing of the source is kept"):
        token_keep(np.zeros((32, 64), bool))


def test_kept_region_grows_and_shrinks_around_the_seam() -> None:
    keep = np.zeros((64, 128), bool)
    keep[24:40, :16] = True
    grown = resize_keep(keep, 1)
    expected = np.zeros_like(keep)
    expected[16:48, :24] = expected[16:48, 120:] = True
    assert np.array_equal(grown, expected)
    assert np.array_equal(resize_keep(grown, -1), keep)
    assert resize_keep(keep, 0) is keep
    # One cell of erosion: exactly the tokens that are kept to the last pixel.
    ragged = np.zeros((64, 128), bool)
    ragged[9:61, 20:99] = True
    whole = ragged.reshape(4, 16, 8, 16).all((1, 3))
    assert np.array_equal(token_keep(resize_keep(ragged, -1)), whole)


def test_regions_continue_across_the_pole() -> None:
    keep = np.zeros((64, 128), bool)
    keep[0, 10] = True
    grown = resize_keep(keep, 1)
    assert grown[:9, 2:19].all()
    assert grown[:8, 66:83].all()  # half a turn away
    assert grown.sum() == 9 * 17 + 8 * 17


# ---- photos -------------------------------------------------------------------------------------


def smooth_erp(height: int) -> np.ndarray:
    lon = (np.arange(2 * height) + 0.5) / height * np.pi
    lat = (np.arange(height)[:, None] + 0.5) / height * np.pi
    waves = [
        np.sin(3 * lon) * np.sin(lat),
        np.cos(2 * lon + 1) * np.sin(lat),
        np.cos(3 * lat) + 0 * lon,
    ]
    return np.round(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def test_a_photo_comes_back_to_where_it_was_taken() -> None:
    erp = smooth_erp(128)
    pose: dict[str, Any] = {"yaw": 150.0, "pitch": 20.0, "roll": 10.0}
    photo = np.asarray(erp_to_perspective(erp, size=(300, 400), fov=80.0, **pose))
    placed, keep = place_photo(
        photo, 128, fov_deg=80.0, yaw_deg=150.0, pitch_deg=20.0, roll_deg=10.0
    )
    assert placed.shape == erp.shape
    inner = resize_keep(keep, -1)
    assert kept_psnr_db(placed, erp, inner) > 40
    # Solid angle of a pinhole view, 4 asin(sin(a/2) sin(b/2)) for half angles of the pyramid.
    half_x = math.radians(40)
    half_y = math.atan(math.tan(half_x) * 3 / 4)
    angle = 4 * math.asin(math.sin(half_x) * math.sin(half_y))
    weights = np.sin((np.arange(128) + 0.5) / 128 * np.pi)[:, None] * (np.pi / 128) ** 2
    assert (keep * weights).sum() == pytest.approx(angle, rel=0.01)


def test_the_surroundings_of_a_photo_continue_its_colors() -> None:
    erp, keep = smooth_erp(64), np.zeros((64, 128), bool)
    keep[20:40, 100:] = keep[20:40, :10] = True
    filled = continue_colors(erp, keep)
    assert np.array_equal(filled[keep], erp[keep])
    black = np.where(keep[..., None], erp, 0)
    assert 4 * border_step(filled, keep) < border_step(black, keep)
    low, high = erp[keep].min(0), erp[keep].max(0)
    assert ((filled >= low) & (filled <= high)).all()
    flat = np.full((64, 128, 3), 77, np.uint8)
    assert np.array_equal(continue_colors(np.where(keep[..., None], flat, 0), keep), flat)


def test_an_absurd_field_of_view_is_refused() -> None:
    with pytest.raises(ValueError, match="field of view is 180 degrees; use 10 to 150"):
        place_photo(SOURCE, 64, fov_deg=180.0)


# ---- composition --------------------------------------------------------------------------------


def test_pasted_pixels_fade_in_over_the_feather() -> None:
    source, generated = np.full((64, 128, 3), 200, np.uint8), np.zeros((64, 128, 3), np.uint8)
    keep = np.zeros((64, 128), bool)
    keep[:, 120:] = keep[:, :40] = True  # across the seam
    row = paste_kept(generated, source, keep, 8)[32, :, 0].astype(int)
    # Nine pixels are averaged; of those around pixel k from the border, k + 1 are kept.
    ramp = [round(200 * (k + 1) / 9) for k in range(8)]
    assert row[120:128].tolist() == ramp
    assert row[39:31:-1].tolist() == ramp
    assert set(row[:32]) == {200}
    assert set(row[40:120]) == {0}
    hard = paste_kept(generated, source, keep, 1)
    assert np.array_equal(hard[..., 0], np.where(keep, 200, 0))
    assert paste_kept(generated, source, keep, 0) is generated


def test_border_step_is_one_where_nothing_is_to_be_seen() -> None:
    keep = np.zeros((64, 128), bool)
    keep[16:40, 100:] = keep[16:40, :20] = True
    noise = np.random.default_rng(1).integers(0, 256, (64, 128, 3), np.uint8)
    assert border_step(noise, keep) == pytest.approx(1, abs=0.15)
    assert border_step(np.full_like(noise, 9), keep) == 1
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, noise.shape)
    assert border_step(ramp, keep) == pytest.approx(1, abs=1e-9)  # read-only, as PIL gives them


def test_border_step_measures_a_step() -> None:
    keep = np.zeros((64, 128), bool)
    keep[:, 30:90] = True
    ramp = np.broadcast_to(np.abs(np.arange(128) - 64)[None, :, None], (64, 128, 3))
    image = (ramp + 20 * keep[..., None]).astype(np.uint8)
    # Left of the middle the ramp falls by 1: 20 - 1 and 20 - 1 across, 1 beside.
    assert border_step(image, keep) == pytest.approx(19)


def test_psnr_of_the_kept_region() -> None:
    keep = np.zeros((64, 128), bool)
    keep[:32] = True
    other = SOURCE.copy()
    other[32:] = 0
    assert kept_psnr_db(other, SOURCE, keep) == float("inf")
    flat = np.full_like(SOURCE, 100)
    assert kept_psnr_db(flat + np.uint8(5), flat, keep) == pytest.approx(20 * math.log10(255 / 5))
