"""Polar refinement: what may change, by how much, and what fills the hole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dit360.cli.refine_poles import main
from dit360.data.poles import (
    DiffusersInpainter,
    center_hole,
    cut_face,
    inpaint_smooth,
    load_inpainting,
    refine_poles,
)
from shared_pano_utils import erp_to_cubemap
from shared_pano_utils.imageio import read_image, write_image


def noise(height: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 200, (height, 2 * height, 3), dtype=np.uint8)


def paint(value: int):
    return lambda face, hole, _pole: np.where(hole[..., None], np.uint8(value), face)


def test_hole_of_the_paper() -> None:
    hole = center_hole(1024)
    assert hole[256:768, 256:768].all()
    assert hole.sum() == 512**2


def test_only_rows_near_the_poles_change() -> None:
    """At most 201 of 1024 rows: the corner of the hole is atan(sqrt(1/2)) from the pole."""
    erp = noise(1024)
    refined = refine_poles(erp, paint(255), feather_px=1, poles=["up"])
    changed = (refined != erp).any((1, 2))
    limit = math.degrees(math.atan(math.sqrt(0.5))) / 180 * 1024
    assert math.ceil(limit) == 201
    assert not changed[201:].any()
    assert changed[:198].all()
    # Along the axes the hole ends at atan(1/2) = 26.6 degrees, 151.1 rows.
    edges = [np.flatnonzero((refined != erp).any(2)[:512, column]).max() for column in (1024, 1536)]
    assert edges == pytest.approx([math.degrees(math.atan(0.5)) / 180 * 1024 - 1] * 2, abs=2)
    # Everything outside the square cone of the hole is equal bit for bit.
    lon = ((np.arange(2048) + 0.5) / 2048 - 0.5) * 2 * np.pi
    lat = (0.5 - (np.arange(1024) + 0.5) / 1024) * np.pi
    lon, lat = np.meshgrid(lon, lat)
    reach = np.maximum(np.abs(np.sin(lon)), np.abs(np.cos(lon))) * np.cos(lat)
    outside = reach > 0.5 * np.sin(lat)  # the lower half too
    assert np.array_equal(refined[outside], erp[outside])
    assert (refined[reach < 0.49 * np.sin(lat)] == 255).all()


def test_feather_is_a_ramp_inside_the_hole() -> None:
    """Black to white over 32 of 256 face pixels along the front meridian."""
    erp = np.zeros((256, 512, 3), np.uint8)
    refined = refine_poles(erp, paint(255), feather_px=32, poles=["up"])
    assert not refined[128:].any()
    row = np.arange(60)
    tangent = np.tan((row + 0.5) / 256 * np.pi)
    distance = 64 - tangent * 128 - 0.5  # face pixels from the border of the hole, less half
    expected = np.clip(distance / 32, 0, 1) * 255
    assert np.abs(refined[row, 256, 0] - expected).max() < 4


def test_faces_are_those_of_the_cubemap() -> None:
    erp = np.repeat(np.repeat(noise(16), 8, 0), 8, 1)
    faces = erp_to_cubemap(erp, 128, antialias=True)
    hole = center_hole(128)
    for pole, face in (("up", faces[4]), ("down", faces[5])):
        cut = cut_face(erp, 128, pole)
        assert (cut[hole] == 255).all()
        assert np.abs(cut[~hole].astype(int) - face[~hole].astype(int)).max() <= 1


def test_one_pole_only() -> None:
    erp = noise(64)
    refined = refine_poles(erp, paint(255), feather_px=1, poles=["down"])
    assert np.array_equal(refined[:32], erp[:32])
    assert (refined[-8:] == 255).all()


def test_options_are_checked() -> None:
    erp = noise(64)
    with pytest.raises(ValueError, match="face is 60 px, expected a multiple of 8"):
        refine_poles(erp, paint(1), face_size=60)
    with pytest.raises(ValueError, match="feather is 17 px, use 1 to 16"):
        refine_poles(erp, paint(1), feather_px=17)
    with pytest.raises(ValueError, match=r"returned \(32, 32, 3\) uint8, expected \(64, 64, 3\)"):
        refine_poles(erp, lambda face, _hole, _pole: face[:32, :32], feather_px=4)


# ---- inpainters ---------------------------------------------------------------------------------


def test_smooth_fill_is_the_harmonic_function() -> None:
    """The real part of a cubic is harmonic, and discretely so: the fill restores it exactly."""
    side = 64
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    channels = [100 + 60 * (x * x - y * y), 120 + 50 * x * y, 128 + 20 * (x**3 - 3 * x * y * y)]
    face = np.stack(channels, -1).round().astype(np.uint8)
    hole = center_hole(side)
    holed = np.where(hole[..., None], np.uint8(255), face)
    filled = inpaint_smooth(holed, hole, "up")
    assert np.array_equal(filled[~hole], face[~hole])
    assert np.abs(filled[hole].astype(int) - face[hole].astype(int)).max() <= 1


def test_smooth_fill_against_a_sparse_solver() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    solve = pytest.importorskip("scipy.sparse.linalg").spsolve
    face = noise(24)[:, :24]
    hole = np.zeros((24, 24), dtype=bool)
    hole[4:15, 6:20] = True
    index = np.full(hole.shape, -1)
    index[hole] = np.arange(hole.sum())
    matrix = sparse.lil_matrix((hole.sum(), hole.sum()))
    right = np.zeros((hole.sum(), 3))
    for y, x in np.argwhere(hole):
        k = index[y, x]
        matrix[k, k] = 4
        for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if hole[ny, nx]:
                matrix[k, index[ny, nx]] = -1
            else:
                right[k] += face[ny, nx]
    expected = solve(matrix.tocsc(), right)
    filled = inpaint_smooth(face, hole, "up")[hole]
    assert np.abs(filled - expected).max() <= 0.5 + 1e-6


def test_diffusers_inpainter_repaints_the_hole(micro_flux: Path) -> None:
    import torch

    pipeline = load_inpainting(str(micro_flux), torch.float32)
    assert type(pipeline).__name__ == "FluxInpaintPipeline"
    half = load_inpainting(str(micro_flux), torch.bfloat16)
    assert half.transformer.dtype == half.text_encoder_2.dtype == torch.bfloat16
    pipeline.set_progress_bar_config(disable=True)
    seen = {}

    def spy(**options):
        seen[options["prompt"]] = options
        return pipeline(**options, max_sequence_length=16)

    painter = DiffusersInpainter(
        spy, {"up": "sky", "down": "floor"}, steps=2, guidance_scale=3.5, seed=0
    )
    erp = noise(64)
    refined = refine_poles(erp, painter, feather_px=2)
    assert list(seen) == ["sky", "floor"]
    mask = np.asarray(seen["sky"]["mask_image"])
    assert np.array_equal(mask == 255, center_hole(64))  # diffusers: white is repainted
    assert seen["sky"]["strength"] == 1.0
    assert np.array_equal(refined[13:-13], erp[13:-13])
    assert (refined[:8] != erp[:8]).mean() > 0.9
    assert np.array_equal(refined, refine_poles(erp, painter, feather_px=2))


@pytest.mark.parametrize(
    ("name", "loaded"),
    [
        ("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
        ("FluxFillPipeline", "FluxFillPipeline"),
    ],
)
def test_kontext_and_fill_are_known(
    name: str, loaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers
    import torch

    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    cls = getattr(diffusers, loaded)
    monkeypatch.setattr(cls, "from_pretrained", lambda *_, **__: loaded)
    assert load_inpainting(str(tmp_path), torch.float32) == loaded


# ---- command ------------------------------------------------------------------------------------


def test_command_writes_skips_and_names_failures(tmp_path: Path, capsys) -> None:
    erp = noise(64)
    write_image(tmp_path / "in/a.png", erp)
    write_image(tmp_path / "in/b.png", np.zeros((64, 100, 3), np.uint8))
    argv = [str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(argv) == 1
    shown = capsys.readouterr()
    assert "1 made, 0 skipped, 1 failed" in shown.out
    assert "panorama is 100x64" in shown.err
    refined = read_image(tmp_path / "out/a.png")
    assert np.array_equal(refined[13:-13], erp[13:-13])
    assert np.array_equal(refined, refine_poles(erp, inpaint_smooth, feather_px=2))
    (tmp_path / "in/b.png").unlink()
    assert main(argv) == 0
    assert "0 made, 1 skipped, 0 failed" in capsys.readouterr().out


def test_faces_painted_elsewhere(tmp_path: Path, capsys) -> None:
    erp = noise(64)
    write_image(tmp_path / "a.png", erp)
    out = tmp_path / "out"
    argv = [str(tmp_path / "a.png"), "--output", str(out)]
    assert main([*argv, "--inpainter", "none"]) == 0
    face = read_image(out / "a_up.png")
    assert np.array_equal(face, cut_face(erp, 64, "up"))
    assert not (out / "a.png").exists()
    (out / "a_down.png").unlink()  # as an interrupted run would leave it
    assert main([*argv, "--inpainter", "none"]) == 0
    assert (out / "a_down.png").is_file()
    capsys.readouterr()
    for flag in ("--face_size", "--feather", "--num_inference_steps"):
        assert main([*argv, flag, "0"]) == 2
        assert capsys.readouterr().err == f"error: {flag} 0: use 1 or more\n"
    assert main([*argv, "--inpainter", "painted"]) == 2
    assert "needs --painted" in capsys.readouterr().err
    assert main([*argv, "--inpainter", "painted", "--painted", str(out), "--feather", "1"]) == 0
    refined = read_image(out / "a.png")
    assert (refined[:8] == 255).all()
    assert np.array_equal(refined[13:-13], erp[13:-13])
