"""`pano-convert` on files: geometry of the results, batches, errors of one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared_pano_utils import geometry
from shared_pano_utils.bench import format_report
from shared_pano_utils.bench import run as run_benchmark
from shared_pano_utils.cli import main
from shared_pano_utils.imageio import read_image, read_png16, write_image, write_png16
from shared_pano_utils.metadata import read_gpano

HEIGHT, WIDTH = 128, 256
SCALE = 100.0


def to_colors(rays: np.ndarray) -> np.ndarray:
    """Directions (..., 3) as 8-bit colours; a grey level is 0.01 of a unit vector."""
    return np.rint(127 + SCALE * rays).astype(np.uint8)


def rays(projection, size, **options) -> np.ndarray:
    return geometry.rays(projection, size, **options).numpy()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Working folder with the panorama of its own directions as 8-bit PNG and as float NPY."""
    monkeypatch.chdir(tmp_path)
    directions = rays("erp", (HEIGHT, WIDTH))
    write_image("erp.png", to_colors(directions))
    np.save("erp.npy", directions)
    return tmp_path


def run(command: str) -> None:
    main(command.split())


def failure(command: str, capsys) -> tuple[int, str]:
    """Exit code and stderr of a command that must fail."""
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    code = caught.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


def assert_directions(actual: np.ndarray, expected: np.ndarray, atol: float) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.astype(float), expected, atol=atol)


# ---- transforms ---------------------------------------------------------------------------------
# Bilinear sampling of unit vectors on a grid of 1.4 degrees is off by 1.5e-4 / 2 at most, and by
# half a grey level of rounding in input and output for images.


@pytest.mark.parametrize("container", ["dice", "dice_genex", "horizon", "faces"])
@pytest.mark.usefixtures("folder")
def test_cubemap_files_and_back(container):
    run(f"e2c erp.png cube.png --format {container}")
    faces = to_colors(rays("cube", WIDTH // 4))
    side = WIDTH // 4
    if container == "faces":
        for name, face in zip("FRBLUD", faces, strict=True):
            assert_directions(read_image(f"cube_{name}.png"), face.astype(float), 1)
    else:
        shape = (side, 6 * side) if container == "horizon" else (3 * side, 4 * side)
        image = read_image("cube.png")
        assert image.shape == (*shape, 3)
        corner = {"dice": (1, 1), "dice_genex": (1, 2), "horizon": (0, 0)}[container]
        top, left = corner[0] * side, corner[1] * side
        front = image[top : top + side, left : left + side]
        assert_directions(front, faces[0].astype(float), 1)
    run(f"c2e cube.png back.png --format {container} --size {HEIGHT} {WIDTH}")
    assert_directions(read_image("back.png"), read_image("erp.png").astype(float), 2)
    assert read_gpano("back.png")["FullPanoWidthPixels"] == str(WIDTH)


@pytest.mark.parametrize(
    ("order", "first"),
    [("matterport", 4), ("U F R B L D", 4), ("dit360", 1), ("F R B L U.ud D", 0)],
)
def test_face_order(folder, order, first):
    main(["e2c", "erp.png", "cube.png", "--format", "faces", "--face-order", order])
    names = sorted(path.name for path in folder.glob("cube_*.png"))
    assert names == [f"cube_{k}.png" for k in range(6)]
    face = to_colors(rays("cube", WIDTH // 4))[first].astype(float)
    shown = face[:, ::-1] if order == "dit360" else face
    assert_directions(read_image("cube_0.png"), shown, 1)
    main(["c2e", "cube.png", "back.png", "--format", "faces", "--layout", order])
    assert_directions(read_image("back.png"), read_image("erp.png").astype(float), 2)


def test_face_sets_through_a_glob(folder):
    write_image("other.png", read_image("erp.png"))
    run("e2c *.png faces/ --format faces --face-size 32")
    run("c2e faces/*.png back/ --format faces")
    assert sorted(path.name for path in (folder / "back").iterdir()) == ["erp.png", "other.png"]
    assert read_image("back/erp.png").shape == (64, 128, 3)


@pytest.mark.usefixtures("folder")
def test_float_stack_keeps_precision():
    run("e2c erp.npy cube.npy --format stack --face-size 48 --yaw 30 --pitch 20 --roll 10")
    rotation = geometry.rotation_matrix(30, 20, 10)
    assert_directions(np.load("cube.npy"), rays("cube", 48, R=rotation), 2e-4)
    run("e2c erp.npy cube.npz --format stack")
    run(f"c2e cube.npz back.npz --format stack --size {HEIGHT} {WIDTH}")
    with np.load("back.npz") as saved:
        assert saved["arr_0"].dtype == np.float32
        assert_directions(saved["arr_0"], rays("erp", (HEIGHT, WIDTH)), 4e-4)


@pytest.mark.parametrize("fov", ["60", "80 50"])
@pytest.mark.usefixtures("folder")
def test_view_and_back(fov):
    angles = "--yaw 170 --pitch 30 --roll 15"
    run(f"e2p erp.npy view.npy --size 40 60 --fov {fov} {angles}")
    numbers = [float(text) for text in fov.split()]
    expected = rays(
        "perspective",
        (40, 60),
        fov=numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1]),
        R=geometry.rotation_matrix(170, 30, 15),
    )
    assert_directions(np.load("view.npy"), expected, 2e-4)

    np.save("base.npy", np.full((HEIGHT, WIDTH, 3), 9, np.float32))
    run(f"p2e view.npy erp2.npy --onto base.npy --fov {fov} {angles}")
    pasted = np.load("erp2.npy")
    seen = pasted[..., 0] != 9
    # Solid angle of a pinhole view, as the share of the sphere that is painted.
    share = geometry.sphere_weights("erp", (HEIGHT, WIDTH)).numpy()[seen].sum()
    view_sr = geometry.sphere_weights(
        "perspective", (40, 60), fov=numbers[0] if len(numbers) == 1 else (80, 50)
    ).sum()
    assert share == pytest.approx(float(view_sr), rel=0.02)
    # A view of 60 pixels is coarser than the panorama, and clamped at its border.
    assert np.abs(pasted - rays("erp", (HEIGHT, WIDTH)))[seen].max() < 0.03


@pytest.mark.usefixtures("folder")
def test_rotate_is_a_roll_for_quarter_turns():
    run("rotate erp.png turned.png --yaw 90")
    np.testing.assert_array_equal(
        read_image("turned.png"), np.roll(read_image("erp.png"), -WIDTH // 4, 1)
    )
    write_png16("depth.png", np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH))
    run("rotate depth.png turned16.png --yaw -90 --mode nearest")
    np.testing.assert_array_equal(
        read_png16("turned16.png"), np.roll(read_png16("depth.png"), WIDTH // 4, 1)
    )


@pytest.mark.parametrize(("kind", "count"), [("cube", 6), ("horizon", 5), ("icosahedron", 20)])
def test_views(folder, kind, count):
    run(f"views erp.npy out --kind {kind} --n 5 --fov 70 --size 20 20")
    table = json.loads((folder / "out" / "erp_views.json").read_text())
    assert len(table) == len(list((folder / "out").glob("erp_*.npy"))) == count
    for index, camera in enumerate(table):
        assert camera["fov"] == 70
        rotation = geometry.rotation_matrix(camera["yaw"], camera["pitch"], camera["roll"])
        expected = rays("perspective", (20, 20), fov=70, R=rotation)
        assert_directions(np.load(f"out/erp_{index:02d}.npy"), expected, 2e-4)


# ---- geometry -----------------------------------------------------------------------------------


def read_vertices(path: str) -> np.ndarray:
    body = Path(path).read_bytes().split(b"end_header\n")[1]
    fields = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("r", "g", "b")]
    return np.frombuffer(body, fields)


@pytest.mark.usefixtures("folder")
def test_depth_to_cloud():
    distance = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    distance[0], distance[1], distance[2] = np.nan, 0, 50
    np.save("depth.npy", distance)
    run("depth2cloud erp.png depth.npy cloud.ply --max-depth 10")
    cloud = read_vertices("cloud.ply")
    expected = 2 * rays("erp", (HEIGHT, WIDTH))[3:].reshape(-1, 3)
    points = np.stack([cloud["x"], cloud["y"], cloud["z"]], -1)
    assert_directions(points, expected, 1e-6)
    colors = np.stack([cloud["r"], cloud["g"], cloud["b"]], -1)
    np.testing.assert_array_equal(colors, read_image("erp.png")[3:].reshape(-1, 3))

    write_png16("depth.png", np.full((HEIGHT, WIDTH), 2500, np.uint16))
    run("depth2cloud erp.png depth.png cloud.ply --stride 4")
    cloud = read_vertices("cloud.ply")
    assert len(cloud) == HEIGHT * WIDTH // 16
    radius = np.sqrt(cloud["x"] ** 2 + cloud["y"] ** 2 + cloud["z"] ** 2)
    np.testing.assert_allclose(radius, 2.5, rtol=1e-6)


@pytest.mark.usefixtures("folder")
def test_seam_prints_json(capsys):
    ramp = np.tile(np.arange(WIDTH, dtype=np.float32)[None, :, None], (HEIGHT, 1, 3))
    np.save("ramp.npy", ramp)
    run("seam erp.png ramp.npy")
    smooth, cut = map(json.loads, capsys.readouterr().out.splitlines())
    assert (smooth["file"], cut["file"]) == ("erp.png", "ramp.npy")
    assert smooth["wrap_ratio"] < 1.5
    assert cut["wrap_jump"] == WIDTH - 1
    assert cut["wrap_ratio"] == pytest.approx(WIDTH - 1)


# ---- scenes and benchmark -----------------------------------------------------------------------


def test_synth_renders_and_resumes(folder):
    run("synth scenes --n 2 --seed 3 --size 32 64 --pairs")
    names = sorted(path.name for path in (folder / "scenes").iterdir())
    assert names == ["room_000003", "room_000004"]
    scene = folder / "scenes" / "room_000003"
    assert read_image(scene / "rgb.png").shape == (32, 64, 3)
    assert read_gpano(scene / "rgb.png")
    depth = np.load(scene / "depth.npy")
    assert depth.shape == (32, 64)
    assert 0.3 < depth.min() < depth.max() < 20
    normals = np.load(scene / "normals.npy").astype(float)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=2e-3)
    assert ((normals * rays("erp", (32, 64))).sum(-1) < 1e-3).all()
    pair = json.loads((scene / "pair.json").read_text())
    mask = read_image(scene / "mask.png")[..., 0] > 0
    np.testing.assert_array_equal(mask, read_png16(scene / "instance.png") == pair["instance"])
    changed = (read_image(scene / "rgb_with.png") != read_image(scene / "rgb_without.png")).any(-1)
    assert changed[mask].mean() > 0.5
    before = (scene / "rgb.png").stat().st_mtime_ns
    (folder / "scenes" / "room_000004" / "scene.json").unlink()
    run("synth scenes --n 2 --seed 3 --size 32 64")
    assert (scene / "rgb.png").stat().st_mtime_ns == before
    assert (folder / "scenes" / "room_000004" / "scene.json").exists()


def test_synth_sequence(folder):
    run("synth walk --sequence 3 --size 32 64 --seed 1")
    scene = folder / "walk" / "room_000001"
    poses = json.loads((scene / "poses.json").read_text())
    assert (
        len(poses)
        == len(list(scene.glob("rgb_*.png")))
        == len(list(scene.glob("depth_*.npy")))
        == 3
    )
    steps = np.linalg.norm(np.diff([pose["t"] for pose in poses], axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.1, atol=1e-5)


@pytest.fixture(scope="module")
def report():
    from shared_pano_utils.bench import runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_HEIGHTS", (64,))
        patch.setattr(
            runner, "_measure_scene", lambda height, _budget: {"H": height, "W": 0, "median_ms": 1}
        )
        patch.setattr(runner, "_MAX_RUNS", 3)
        return run_benchmark(compare=False, quick=True)


def test_benchmark_report(report):
    fields = {"lib", "op", "H", "W", "dtype", "mode", "threads", "batch", "device"}
    fields |= {"median_ms", "min_ms", "cold_ms", "n", "rejected"}
    on_cpu = [row for row in report["results"] if row["device"] == "cpu"]
    assert {(row["op"], row["dtype"]) for row in on_cpu} == {
        (op, dtype) for op in ("e2c", "c2e", "e2p", "e2e") for dtype in ("uint8", "float32")
    }
    for row in report["results"]:
        assert set(row) == fields
        assert 0 < row["min_ms"] <= row["median_ms"]
    assert set(report["accuracy"][0]) == {
        *("lib", "op", "signal", "S", "mode", "psnr", "edge_ratio", "seam_ratio", "max")
    }
    text = format_report(report)
    assert "64x128 float32, 1 thread" in text
    assert "(1.0x)" in text
    assert json.loads(json.dumps(report)) == report


# ---- batches and errors -------------------------------------------------------------------------


def test_good_items_are_done_when_one_is_bad(folder, capsys):
    write_image("a.png", read_image("erp.png"))
    (folder / "broken.png").write_bytes((folder / "erp.png").read_bytes()[:100])
    code, message = failure("e2c *.png out/ --face-size 16", capsys)
    assert code == 1
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "erp.png"]
    first, last = message.splitlines()
    assert first.startswith("pano-convert e2c: broken.png: not a readable image")
    assert last == "pano-convert e2c: 2 of 3 done, 1 failed"


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("e2c none.png out.png", "none.png: no such file"),
        ("e2c none*.png out/", "none*.png: no file matches"),
        ("e2c . out/", ". is a folder; name its files"),
        ("e2c erp.png erp.png", "erp.png would be overwritten by its own result"),
        ("e2c erp.png erp.npy out.png", "2 inputs need a folder as output, got 'out.png'"),
        ("e2c erp.png out.gif", "unknown image suffix '.gif'"),
        ("e2c erp.npy out.png", "out.png: the data are float32; write them to .npy or .npz"),
        ("e2c erp.png out.png --format faces --face-order nonsense", "faces of layout"),
        ("e2c erp.png out.png --face-order opengl", "whose cells are fixed"),
        ("e2c erp.png out.png --face-size 0", "'0' is not a positive whole number"),
        ("c2e erp.png out.png", "image has shape (128, 256, 3)"),
        ("e2p erp.png out.png --fov 200", "fov is 200"),
        ("e2p erp.png out.png --fov 60 50 40", "--fov has 3 numbers"),
        ("p2e erp.png out.png --onto erp.npy", "they must be the same"),
        ("p2e erp.png out.png --onto erp.png --size 8 16", "leave --size out"),
        ("rotate erp.png out.png --yaw nan", "yaw is nan"),
        ("depth2cloud erp.png erp.png out.ply", "expected one depth per pixel"),
        ("depth2cloud erp.png erp.npy out.obj", "use the suffix .ply"),
        ("depth2cloud erp.png zero.npy out.ply", "zero.npy: no pixel has a depth above 0"),
        ("synth out --kind castle", "invalid choice: 'castle'"),
        ("seam broken.npy", "broken.npy: not a readable .npy file"),
        ("seam two.npz", "two.npz: holds the arrays a, b; expected one"),
        ("fly erp.png out.png", "invalid choice: 'fly'"),
        ("", "the following arguments are required: VERB"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, capsys, command, match):
    (folder / "broken.npy").write_bytes(b"no array")
    np.save("zero.npy", np.zeros((HEIGHT, WIDTH), np.float32))
    np.savez("two.npz", a=np.zeros(2), b=np.zeros(2))
    before = sorted(path.name for path in folder.iterdir())
    code, message = failure(command, capsys)
    assert code == 2
    assert match in message
    assert message.count("\n") == 1
    assert message.startswith("pano-convert")
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.usefixtures("folder")
def test_two_inputs_of_one_name(capsys):
    write_image("sub/erp.png", read_image("erp.png"))
    code, message = failure("rotate erp.png sub/erp.png out/", capsys)
    assert code == 2
    assert "two inputs are both called erp.png" in message


def test_help_is_fast_and_complete(capsys):
    """`--help` of the program and of every verb, without importing torch."""
    verbs = ["e2c", "c2e", "e2p", "p2e", "rotate", "views", "depth2cloud", "seam", "synth", "bench"]
    code = (
        "import sys; from shared_pano_utils.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert [verb for verb in verbs if not re.search(rf"\n    {verb}\s", done.stdout)] == []
    for verb in verbs:
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
        assert f"pano-convert {verb}" in capsys.readouterr().out
