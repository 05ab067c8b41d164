"""Point clouds and meshes against rooms known in closed form; `generate_point_cloud.py`."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from pager.cli import point_cloud as command
from pager.cloud import (
    RDF_TO_GLTF,
    clean_pixels,
    depth_mesh,
    difference_edges,
    large_clusters,
    point_cloud,
    write_mesh,
    write_points,
)
from pager.data.panoinfinigen import PanoInfinigen
from pager.export import normals_preview, write_npz
from shared_pano_utils import rays
from shared_pano_utils.imageio import read_image
from shared_pano_utils.mesh import Mesh

ROOT = Path(__file__).parents[1]
HALF_ROOM_M = np.array([2.5, 1.4, 3.5])
CAMERA_M = np.array([0.5, -0.2, 1.0])
HALF_BOX_M = np.array([0.4, 0.4, 0.4])
BOX_M = np.array([-0.8, 1.0, 2.4])  # stands on the floor


def directions(size: tuple[int, int]) -> np.ndarray:
    """Viewing directions (H, W, 3) float64, RDF."""
    return rays("erp", size, dtype=torch.float64).numpy()


def slabs(size: tuple[int, int], centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distances (H, W) at which the rays of the camera enter and leave a box."""
    d = directions(size)
    near = (centre - np.sign(d) * half - CAMERA_M) / d
    far = (centre + np.sign(d) * half - CAMERA_M) / d
    return near.max(-1), far.min(-1)


def empty_room(size: tuple[int, int]) -> np.ndarray:
    """Depth (1, H, W) of a 5 x 2.8 x 7 m room."""
    return slabs(size, np.zeros(3), HALF_ROOM_M)[1][None].astype(np.float32)


def furnished_room(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Depth (1, H, W) of the room with a box in it, and the mask (H, W) of the box."""
    depth = empty_room(size)
    near, far = slabs(size, BOX_M, HALF_BOX_M)
    is_box = (near < far) & (near > 0)
    return np.where(is_box, near, depth[0])[None].astype(np.float32), is_box


def pixel_colors(size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 whose colours are the number of the pixel."""
    number = np.arange(size[0] * size[1]).reshape(size)
    return np.stack([number >> 16, number >> 8 & 255, number & 255], -1).astype(np.uint8)


def pixel_numbers(colors: np.ndarray) -> np.ndarray:
    return colors.astype(int) @ [65536, 256, 1]


def wall_error(points: np.ndarray) -> np.ndarray:
    """Distances of points (N, 3), RDF from the camera, to the surface of the empty room."""
    outside = np.abs(points + CAMERA_M) - HALF_ROOM_M
    return np.abs(outside.max(-1))


def welded(mesh: Mesh | trimesh.Trimesh) -> trimesh.Trimesh:
    """The surface without its texture seam: vertices at the same place are one."""
    return trimesh.Trimesh(np.asarray(mesh.vertices), np.asarray(mesh.faces), process=True)


# ---- pixels -------------------------------------------------------------------------------------


# The shares of the original's test are those published for this room (camera in the middle).
@pytest.mark.parametrize(("size", "original"), [((512, 1024), 0.28), ((1024, 2048), 0.56)])
def test_empty_room_is_kept_where_the_original_drops_it(size, original):
    depth = empty_room(size)
    assert clean_pixels(depth).mean() > 0.99
    assert clean_pixels(depth, edge_thresh=0.002).mean() == pytest.approx(original, abs=0.02)
    assert clean_pixels(depth, edge_thresh=0.01).mean() > 0.9


def test_original_edge_test_by_hand():
    depth = np.full((1, 4, 8), 2.0)
    depth[0, 1, 3] = 2.003  # 3 mm, but 0.15 % of the distance
    assert not difference_edges(depth, 0.002).any()
    depth[0, 1, 3] = 2.0045
    expected = np.zeros((4, 8), bool)
    expected[1, 2:5] = expected[0:3, 3] = True
    assert np.array_equal(difference_edges(depth, 0.002), expected)
    assert np.array_equal(
        difference_edges(np.roll(depth, 4, -1), 0.002), np.roll(expected, 4, -1)
    )  # across +-180 degrees
    near = np.full((1, 4, 8), 0.1)
    near[0, 0] = 0.1015  # 1.5 %, but 1.5 mm
    assert not difference_edges(near, 0.002).any()
    near[0, 0] = 0.103
    assert difference_edges(near, 0.002)[:2].all()
    assert not difference_edges(near, 0.002)[2:].any()  # the poles are no neighbours
    sky = np.full((1, 4, 8), np.inf)
    sky[0, 2:] = 5
    assert difference_edges(sky, 0.002).any(1).tolist() == [False, True, True, False]


def test_sky_invalid_and_masked_pixels_are_left_out():
    depth = np.full((1, 16, 32), 3.0, np.float32)
    depth[0, :4] = 80
    depth[0, 8, :5] = [np.nan, np.inf, 0, -1, 0.5]
    valid = np.ones((16, 32), bool)
    valid[12:] = False
    keep = clean_pixels(depth, far_m=75, valid=valid)
    assert not keep[:4].any()
    assert not keep[8, :4].any()
    assert not keep[12:].any()
    assert keep[5:7, 8:].all()
    assert keep[9:12, 8:].all()
    assert clean_pixels(depth, far_m=None)[:3].all()  # beyond the range, but a surface


def test_small_clusters_are_dropped_across_the_seam_and_the_poles():
    mask = np.zeros((32, 64), bool)
    mask[14:18, :2] = mask[14:18, -2:] = True  # 16 pixels over the seam
    mask[16, 30:39] = True  # 9 pixels
    kept = large_clusters(mask, 10)
    assert kept[14:18, :2].all()
    assert kept[14:18, -2:].all()
    assert kept.sum() == 16
    assert large_clusters(mask, 17).sum() == 0
    assert np.array_equal(large_clusters(mask, 1), mask)
    # A diagonal step over the seam connects; the first and the last row do not.
    diagonal = np.zeros((32, 64), bool)
    diagonal[16, -6:] = diagonal[17, :6] = True
    assert large_clusters(diagonal, 11).sum() == 12
    apart = np.zeros((32, 64), bool)
    apart[-1, -6:] = apart[0, :6] = True
    weight = 6 * np.sin(np.pi / 64)
    assert large_clusters(apart, weight * 1.5).sum() == 0
    # Over a pole, the opposite meridian follows; a pixel there counts by its area.
    pole = np.zeros((32, 64), bool)
    pole[:8, 10] = pole[:8, 42] = True
    area = 2 * np.sin((np.arange(8) + 0.5) * np.pi / 32).sum()
    assert large_clusters(pole, area - 0.01).sum() == 16
    assert large_clusters(pole, area + 0.01).sum() == 0


def test_chain_of_clusters_over_the_seam_is_one():
    """A spiral of four bars, each joined to the next one by a step across the seam."""
    mask = np.zeros((32, 64), bool)
    mask[[4, 8, 12, 16], 2:62] = True
    for row in (4, 8, 12):
        mask[[row, row + 1, row + 2, row + 3], [62, 63, 0, 1]] = True
    rows = (np.arange(32) + 0.5) * np.pi / 32
    area = (mask * np.sin(rows)[:, None]).sum()
    for image in (mask, mask[:, ::-1], mask[::-1]):
        assert np.array_equal(large_clusters(image, area - 0.01), image)
        assert not large_clusters(image, area + 0.01).any()
    mask[14, 0] = False  # the last bar comes loose
    rest = large_clusters(mask, area / 2)
    assert np.array_equal(np.flatnonzero(rest.any(1)), np.arange(4, 14))


# ---- points -------------------------------------------------------------------------------------


def test_points_lie_on_the_walls_with_the_colour_of_their_pixel():
    size = (512, 1024)
    depth = empty_room(size)
    points, colors = point_cloud(depth, pixel_colors(size))
    assert wall_error(points).max() < 1e-3
    extent = points.max(0) - points.min(0)
    np.testing.assert_allclose(extent, 2 * HALF_ROOM_M, atol=1e-3)
    # Spread evenly over the sphere: 2 / pi of the pixels are left.
    assert len(points) == pytest.approx(2 / np.pi * depth.size, rel=0.01)
    number = pixel_numbers(colors)
    expected = (directions(size) * depth[0][..., None]).reshape(-1, 3)[number]
    np.testing.assert_allclose(points, expected, atol=1e-5)
    dense, _ = point_cloud(depth, pixel_colors(size), equal_area=False)
    assert len(dense) == depth.size
    few, few_colors = point_cloud(depth, pixel_colors(size), max_points=1000)
    assert len(few) == 1000
    assert set(pixel_numbers(few_colors)) <= set(number)


@pytest.mark.parametrize("edge_thresh", [None, 0.02])
def test_rolled_panorama_gives_the_rotated_cloud(edge_thresh):
    size, shift = (128, 256), 77
    depth, _ = furnished_room(size)
    rgb = pixel_colors(size)
    options = {"equal_area": False, "edge_thresh": edge_thresh, "min_cluster": 20}
    points, colors = point_cloud(depth, rgb, **options)
    rolled, rolled_colors = point_cloud(
        np.roll(depth, shift, -1), np.roll(rgb, shift, 1), **options
    )
    order, rolled_order = (np.argsort(pixel_numbers(c)) for c in (colors, rolled_colors))
    assert np.array_equal(colors[order], rolled_colors[rolled_order])
    angle = 2 * np.pi * shift / size[1]  # what was ahead moves to the right
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    np.testing.assert_allclose(rolled[rolled_order], points[order] @ turn.T, atol=1e-5)


def test_no_point_hangs_between_a_blurred_box_and_the_wall():
    size = (256, 512)
    sharp, is_box = furnished_room(size)
    # A network's outlines: depth of the two sides mixed over two pixels.
    blurred = sharp.copy()
    blurred[0, :, 1:-1] = (sharp[0, :, :-2] + 2 * sharp[0, :, 1:-1] + sharp[0, :, 2:]) / 4
    hanging = np.abs(blurred - sharp)[0] > 0.15
    assert hanging.sum() > 80
    assert not clean_pixels(blurred)[hanging].any()
    # What is removed is the outline alone.
    assert clean_pixels(sharp)[is_box].mean() > 0.9
    assert clean_pixels(sharp).mean() > 0.997


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_points_read_back(kind, tmp_path):
    size = (32, 64)
    points, colors = point_cloud(empty_room(size), pixel_colors(size))
    path = tmp_path / f"cloud.{kind}"
    write_points(path, points, colors, kind)
    loaded = trimesh.load(path)
    cloud = loaded.geometry["geometry_0"] if kind == "glb" else loaded
    frame = RDF_TO_GLTF if kind == "glb" else 1
    assert np.array_equal(np.asarray(cloud.vertices, np.float32), points * frame)
    assert np.array_equal(np.asarray(cloud.colors)[:, :3], colors)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_glb_is_right_up_backward():
    right_down_forward = np.array([1.0, 2.0, 3.0])
    assert (right_down_forward * RDF_TO_GLTF).tolist() == [1.0, -2.0, -3.0]


def test_nothing_but_sky(tmp_path):
    sky = np.full((1, 8, 16), np.inf, np.float32)
    points, colors = point_cloud(sky, pixel_colors((8, 16)))
    assert points.shape == colors.shape == (0, 3)
    write_points(tmp_path / "sky.ply", points, colors, "ply")
    with pytest.raises(ValueError, match="there are 0 points"):
        write_points(tmp_path / "sky.glb", points, colors, "glb")
    with pytest.raises(ValueError, match="there are 0 triangles"):
        write_mesh(tmp_path / "sky.glb", depth_mesh(sky), pixel_colors((8, 16)))
    assert [path.name for path in tmp_path.iterdir()] == ["sky.ply"]


# ---- meshes -------------------------------------------------------------------------------------


def test_mesh_of_the_empty_room_is_watertight():
    mesh = welded(depth_mesh(empty_room((256, 512))))
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    # Seen from within, so the outside of the surface is the inside of the room.
    assert -mesh.volume == pytest.approx(5 * 7 * 2.8, rel=0.005)
    # The grid cuts the twelve edges of the room short.
    assert mesh.area == pytest.approx(2 * (5 * 7 + 5 * 2.8 + 7 * 2.8), rel=0.01)


def test_smaller_mesh_of_a_larger_panorama():
    mesh = depth_mesh(empty_room((512, 1024)), max_points=2 * 90**2)
    assert len(mesh.vertices) == 90 * 181 + 2 * 180
    surface = welded(mesh)
    assert surface.is_watertight
    assert -surface.volume == pytest.approx(5 * 7 * 2.8, rel=0.005)
    # Only grid cells with an edge of the room in them are off its walls.
    error = wall_error(mesh.vertices)
    assert np.quantile(error, 0.9) < 2e-3
    assert error.max() < 0.05


def test_mesh_is_cut_around_a_box():
    size = (256, 512)
    depth, is_box = furnished_room(size)
    mesh = depth_mesh(depth)
    positions = mesh.vertices + CAMERA_M
    on_box = (np.abs(np.abs(positions - BOX_M) - HALF_BOX_M) < 2e-3).any(1)
    on_box &= (np.abs(positions - BOX_M) < HALF_BOX_M + 2e-3).all(1)
    assert on_box.sum() == pytest.approx(is_box.sum(), rel=0.05)
    edges = mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    mixed = edges[on_box[edges].sum(1) == 1]
    step = np.linalg.norm(mesh.vertices[mixed[:, 0]] - mesh.vertices[mixed[:, 1]], axis=1)
    # Box and room stay joined where the box stands on the floor, and nowhere else.
    assert len(step) > 0
    assert step.max() < 0.2
    assert np.abs(positions[mixed.ravel(), 1] - HALF_ROOM_M[1]).max() < 0.1
    assert not welded(mesh).is_watertight


def test_sky_has_no_triangles_and_islands_can_be_dropped():
    depth = np.full((1, 64, 128), 80.0, np.float32)
    depth[0, 32:] = 3
    depth[0, 10:15, :4] = depth[0, 10:15, -1:] = (
        2  # a bird on the seam, 3 x 3 pixels off its outline
    )
    with_bird = depth_mesh(depth, far_m=75)
    assert np.linalg.norm(with_bird.vertices, axis=1).max() < 3.01
    assert (with_bird.vertices[:, 1] < -0.5).sum() == 5 * 5 + 5  # column 0 has two vertices
    small = depth_mesh(depth, far_m=75, min_cluster=5)
    assert np.array_equal(small.faces, with_bird.faces)
    without = depth_mesh(depth, far_m=75, min_cluster=10)
    # The ground stays whole up to its last row; the pole is put on the plane of its row.
    np.testing.assert_allclose(np.linalg.norm(without.vertices, axis=1), 3, atol=1e-3)
    assert without.vertices[:, 1].min() == pytest.approx(3 * np.sin(np.pi / 128), abs=1e-5)


def test_mesh_glb_read_back(tmp_path):
    size = (64, 128)
    mesh = depth_mesh(empty_room(size))
    texture = pixel_colors(size)
    write_mesh(tmp_path / "room.glb", mesh, texture)
    (loaded,) = trimesh.load(tmp_path / "room.glb", process=False).geometry.values()
    np.testing.assert_array_equal(np.asarray(loaded.vertices, np.float32), mesh.vertices * RDF_TO_GLTF)  # fmt: skip
    np.testing.assert_array_equal(loaded.faces, mesh.faces)
    np.testing.assert_allclose(loaded.visual.uv, mesh.uv, atol=1e-6)
    stored = loaded.visual.material.baseColorTexture
    assert np.array_equal(np.asarray(stored.convert("RGB")), texture)
    assert welded(loaded).is_watertight
    # The texture shows every vertex the pixel of its ray.
    u, v = loaded.visual.uv.T
    column, row = (u * size[1]).astype(int) % size[1], ((1 - v) * size[0]).astype(int)
    grid = (v > 0) & (v < 1)  # the poles lie between pixels
    seen = loaded.vertices[grid] * RDF_TO_GLTF
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    np.testing.assert_allclose(seen, directions(size)[row[grid], column[grid]], atol=1e-5)
    tree = json.loads(glb_json(tmp_path / "room.glb"))
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert tree["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}


def glb_json(path: Path) -> bytes:
    """The JSON chunk: 12 bytes of file header, its length, its type, its content."""
    data = io.BytesIO(path.read_bytes())
    data.seek(12)
    length = int.from_bytes(data.read(4), "little")
    assert data.read(4) == b"JSON"
    return data.read(length)


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, data_path: Path) -> Path:
    """True depth and normals of the test split in the original's tree, sky at the range's end."""
    for sample in PanoInfinigen(data_path, "test"):
        name = f"PanoInfinigen/eval/{sample['id']}.npz"
        write_npz(tmp_path / "PaGeR-depth" / name, sample["depth"].clamp(0.01, 75).numpy())
        write_npz(tmp_path / "PaGeR-normals" / name, sample["normals"].numpy())
    return tmp_path


@pytest.fixture
def flags(results: Path, data_path: Path) -> list[str]:
    return [
        "--data_path", str(data_path), "--depth_path", str(results / "PaGeR-depth"),
        "--normals_path", str(results / "PaGeR-normals"),
    ]  # fmt: skip


def outputs(results: Path, folder: str) -> dict[str, Path]:
    found = (results / "PaGeR-depth" / "PanoInfinigen" / folder).iterdir()
    return {path.stem: path for path in found if path.name != "run.json"}


def test_data_set_clouds(flags, results, data_path, capsys):
    assert command.main(flags) == 0
    assert "2 of 2 files written to" in capsys.readouterr().out
    clouds = outputs(results, "rgb_point_clouds")
    samples = {sample["id"]: sample for sample in PanoInfinigen(data_path, "test")}
    assert clouds.keys() == samples.keys()
    for name, sample in samples.items():
        (cloud,) = trimesh.load(clouds[name]).geometry.values()
        truth = sample["depth"].numpy()
        points, colors = point_cloud(
            truth.clip(0.01, 75),
            sample["rgb"].movedim(0, -1).numpy(),
            far_m=0.95 * 75,
            valid=(truth > 0.0101)[0] & (truth < 74.25)[0],
        )
        assert len(points) > 100
        assert np.array_equal(np.asarray(cloud.vertices, np.float32), points * RDF_TO_GLTF)
        assert np.array_equal(np.asarray(cloud.colors)[:, :3], colors)
    run = json.loads((next(iter(clouds.values())).parent / "run.json").read_text())
    assert run["options"]["color_modality"] == "rgb"


def test_normals_as_colours_and_ply(flags, results, data_path):
    assert command.main([*flags, "--color_modality", "normals", "--format", "ply"]) == 0
    clouds = outputs(results, "normals_point_clouds")
    for sample in PanoInfinigen(data_path, "test"):
        cloud = trimesh.load(clouds[sample["id"]])
        possible = {tuple(c) for c in normals_preview(sample["normals"].numpy()).reshape(-1, 3)}
        assert {tuple(c) for c in np.asarray(cloud.colors)[:, :3]} <= possible
        assert cloud.vertices[:, 1].max() > 0.1  # y down: the ground


def test_meshes_with_the_panorama_as_texture(flags, results, data_path):
    assert command.main([*flags, "--format", "mesh", "--scenes", "indoor"]) == 0
    ((name, path),) = outputs(results, "rgb_meshes").items()
    (mesh,) = trimesh.load(path).geometry.values()
    sample = next(s for s in PanoInfinigen(data_path, "test") if s["id"] == name)
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    assert np.array_equal(texture, sample["rgb"].movedim(0, -1).numpy())
    assert len(mesh.faces) > 1000


def test_flags_choose_the_points(flags, results):
    def count(*more: str) -> int:
        assert command.main([*flags, "--scenes", "indoor", "--overwrite", *more]) == 0
        (path,) = outputs(results, "rgb_point_clouds").values()
        (cloud,) = trimesh.load(path).geometry.values()
        return len(cloud.vertices)

    default = count()
    assert count("--no-equal_area") > 1.3 * default
    assert count("--edge_thresh", "0.1") < default
    assert count("--max_points", "100") == 100
    assert count("--max_depth", "2.5") < default
    assert count("--min_cluster", "100") <= default
    assert count("--no-mask") >= default


def test_pixels_without_truth_are_left_out_unless_asked_for(flags, results, data_path):
    (view,) = PanoInfinigen(data_path, "test", "outdoor").views
    path = results / "PaGeR-depth" / "PanoInfinigen" / "eval" / f"{view.id}.npz"
    write_npz(path, np.full((1, 32, 64), 5.0, np.float32))  # a sky that was not recognised
    counts = {}
    for mask in ("--mask", "--no-mask"):
        assert command.main([*flags, "--scenes", "outdoor", "--overwrite", "--no-equal_area", mask]) == 0  # fmt: skip
        (cloud,) = trimesh.load(outputs(results, "rgb_point_clouds")[view.id]).geometry.values()
        counts[mask] = len(cloud.vertices)
    truth = PanoInfinigen(data_path, "test", "outdoor")[0]["depth"]
    assert counts == {"--mask": int((truth < 0.99 * 75).sum()), "--no-mask": 32 * 64}


def test_missing_and_damaged_predictions(flags, results, capsys):
    folder = results / "PaGeR-depth" / "PanoInfinigen" / "eval"
    first, second = sorted(folder.iterdir())
    whole = first.read_bytes()
    first.unlink()
    assert command.main(flags) == 1
    captured = capsys.readouterr()
    assert "1 of 2 files written" in captured.out
    assert captured.err.splitlines() == [
        f"missing: {first}", "1 predictions are missing; run inference.py first",
    ]  # fmt: skip
    assert outputs(results, "rgb_point_clouds").keys() == {second.stem}
    first.write_bytes(whole[:200])
    assert command.main(flags) == 1
    captured = capsys.readouterr()
    assert "0 of 1 files written" in captured.out
    assert captured.err.startswith(f"failed: {first}: not a readable array")
    write_npz(first, np.full((1, 32, 64), 75, np.float32))
    assert command.main(flags) == 1
    assert f"failed: {first}: no point is left" in capsys.readouterr().err
    time = (results / "PaGeR-depth/PanoInfinigen/rgb_point_clouds" / f"{second.stem}.glb").stat()
    first.write_bytes(whole)
    assert command.main(flags) == 0
    assert command.main(flags) == 0
    assert "nothing to do: all 2 files exist" in capsys.readouterr().out
    clouds = outputs(results, "rgb_point_clouds")
    assert clouds[second.stem].stat().st_mtime_ns == time.st_mtime_ns
    assert command.main([*flags, "--overwrite"]) == 0
    assert clouds[second.stem].stat().st_mtime_ns > time.st_mtime_ns
    assert not list(results.rglob(".*"))


def test_folders_of_inference_input(tmp_path, panorama, capsys):
    out = tmp_path / "results"
    Image.fromarray(panorama).save(tmp_path / "a.png")
    for name in ("a", "b"):
        write_npz(out / name / "depth.npz", empty_room(panorama.shape[:2]))
        write_npz(out / name / "normals.npz", -directions(panorama.shape[:2]).transpose(2, 0, 1))
        meta = {"source": str(tmp_path / f"{name}.png"), "files": []}
        (out / name / "meta.json").write_text(json.dumps(meta))
    assert command.main(["--input", str(out / "a"), "--format", "mesh"]) == 0
    (mesh,) = trimesh.load(out / "rgb_meshes" / "a.glb").geometry.values()
    assert welded(mesh).is_watertight
    assert command.main(["--input", str(out), "--format", "ply"]) == 1  # b has lost its picture
    error = capsys.readouterr().err
    assert f"its source picture {tmp_path / 'b.png'} is not there" in error
    cloud = trimesh.load(out / "rgb_point_clouds" / "a.ply")
    assert np.array_equal(read_image(tmp_path / "a.png"), panorama)
    assert {tuple(c) for c in np.asarray(cloud.colors)[:, :3]} <= {tuple(c) for c in panorama.reshape(-1, 3)}  # fmt: skip
    assert wall_error(cloud.vertices).max() < 1e-3
    assert command.main(["--input", str(out), "--color_modality", "normals"]) == 0
    assert sorted(p.name for p in (out / "normals_point_clouds").glob("*.glb")) == ["a.glb", "b.glb"]  # fmt: skip
    (out / "b" / "normals.npz").unlink()
    assert command.main(["--input", str(out), "--color_modality", "normals", "--overwrite"]) == 1
    assert f"missing: {out / 'b' / 'normals.npz'}" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "message"), [
    (["--depth_path", "nowhere"], "--depth_path nowhere: no folder nowhere/PanoInfinigen/eval"),
    (["--split", "val", "--data_path", "nowhere"], "nowhere"),
    (["--input", "x", "--dataset", "PanoInfinigen"], "--input and --dataset exclude each other"),
    (["--input", "nowhere"], "--input nowhere: no folder with a meta.json"),
    (["--format", "mesh", "--edge_thresh", "0.002"], "--edge_thresh and --no-equal_area"),
    (["--format", "mesh", "--no-equal_area"], "--edge_thresh and --no-equal_area"),
    (["--min_cluster", "-1"], "--min_cluster -1: expected 0"),
])  # fmt: skip
def test_mistakes_are_one_line(more, message, flags, capsys):
    assert command.main([*flags, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_flags_of_the_original_and_their_defaults():
    args = vars(command.build_parser().parse_args([]))
    original = {"data_path": Path("data"), "depth_path": Path("data"), "normals_path": Path("data"),
                "color_modality": "rgb"}  # fmt: skip
    assert original.items() <= args.items()
    assert command.DEFAULT_DATASET == "PanoInfinigen"
    for name in ("PanoInfinigen", "Matterport3D360", "PanoInTheWild", "Structured3D",
                 "Stanford2D3DS", "Replica360_4K"):  # fmt: skip
        assert command.build_parser().parse_args(["--dataset", name]).dataset == name
    for bad in (["--format", "obj"], ["--edge_thresh", "0"], ["--max_points", "0"]):
        with pytest.raises(SystemExit, match="2"):
            command.build_parser().parse_args(bad)


def test_root_script():
    process = subprocess.run(
        [sys.executable, ROOT / "generate_point_cloud.py", "--depth_path", "nowhere"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.startswith("error: --depth_path nowhere: no folder")
