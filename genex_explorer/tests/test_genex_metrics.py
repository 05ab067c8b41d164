"""Metrics of frames, clips and loops against closed forms and other libraries."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from genex_explorer.data.procedural import ClipOptions, find_walk, render_erp
from genex_explorer.metrics import frames as fm
from genex_explorer.metrics import fvd, loop, perceptual
from shared_pano_utils.imageio import write_image, write_json

torch.set_num_threads(1)
CPU = torch.device("cpu")
GIVEN_SIZE = ClipOptions(frames=4, size=(64, 32))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ---- frames -------------------------------------------------------------------------------------


def test_psnr_by_hand_and_beside_skimage():
    a = torch.zeros(3, 3, 4, 8)
    b = torch.stack([torch.full((3, 4, 8), v) for v in (0.1, 0.01, 1e-6)])
    assert fm.psnr(a, b).tolist() == pytest.approx([20, 40, 100], abs=1e-5)
    assert fm.psnr(a, a).tolist() == fm.ws_psnr(a, a).tolist() == [100] * 3
    x, y = noise(0, 1, 3, 20, 30), noise(1, 1, 3, 20, 30)
    expected = peak_signal_noise_ratio(x.double().numpy(), y.double().numpy(), data_range=1)
    assert fm.psnr(x, y).item() == pytest.approx(expected, abs=1e-9)


def test_ssim_beside_skimage_and_torchmetrics():
    x = noise(0, 2, 3, 24, 40)
    y = (x + 0.3 * noise(1, 2, 3, 24, 40)).clamp(0, 1)
    ours = fm.ssim(x, y)
    for i in range(2):
        expected = structural_similarity(
            x[i].double().numpy(), y[i].double().numpy(), data_range=1, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert ours[i].item() == pytest.approx(expected, abs=1e-9)
    _, full = structural_similarity_index_measure(
        x.double(), y.double(), data_range=1.0, return_full_image=True
    )
    twin = full[..., 5:-5, 5:-5].mean((1, 2, 3))  # the windows inside the image
    np.testing.assert_allclose(ours, twin, atol=1e-9)
    assert fm.ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match=r"11x11 pixels or more, these are 64x8; use a larger"):
        fm.ssim(noise(0, 1, 3, 8, 64), noise(1, 1, 3, 8, 64))


def test_spherical_metrics_weight_rows_with_their_solid_angle():
    a = torch.zeros(1, 3, 4, 8)
    b = a.clone()
    b[..., 0, :] = 0.1  # the top row of four is (1 - sin 45) / 2 of the sphere
    share = (1 - math.sqrt(0.5)) / 2
    assert fm.ws_psnr(a, b).item() == pytest.approx(20 - 10 * math.log10(share), abs=1e-6)
    assert fm.psnr(a, b).item() == pytest.approx(20 + 10 * math.log10(4), abs=1e-6)
    x = noise(0, 1, 3, 16, 32)
    y = x + 0.2 * noise(1, 1, 3, 16, 32)
    turned = fm.ws_ssim(x.roll(5, -1), y.roll(5, -1)).item()
    assert fm.ws_ssim(x, y).item() == pytest.approx(turned, abs=1e-12)
    assert fm.ssim(x, y).item() != pytest.approx(fm.ssim(x.roll(5, -1), y.roll(5, -1)).item())


def test_seam_ratio_of_a_wave_a_ramp_and_a_step():
    columns = np.arange(64)
    wave = 128 + 100 * np.sin(2 * np.pi * columns / 64)
    ramp = 2.0 * columns
    step = np.where(columns < 32, 0, 90)
    rows = [np.broadcast_to(c[None, :, None], (32, 64, 3)) for c in (wave, ramp, step)]
    ratios = fm.seam_ratio(np.stack(rows).astype(np.uint8))
    assert ratios[0] == pytest.approx(1, abs=0.15)
    assert ratios[1] == pytest.approx(63)
    assert np.isinf(ratios[2])
    with pytest.raises(ValueError, match="at least 6 columns"):
        fm.seam_ratio(np.zeros((1, 4, 5, 3), np.uint8))


def test_code_regime_is_plain_bilinear_and_paper_antialiased():
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), dtype=np.uint8)
    pairs = image.astype(np.float64).reshape(1, 64, 64, 2, 3).mean(3)
    code = fm.to_resolution(image, (64, 64)) * 255
    np.testing.assert_allclose(code[0].movedim(0, -1), np.floor(pairs[0] + 0.5), atol=1e-4)
    wide = np.zeros((1, 64, 512, 3), np.uint8)
    wide[:, :, ::8] = 255  # one column of eight: bilinear samples columns 3 and 4 and misses it
    assert fm.to_resolution(wide, (64, 64)).max() == 0
    antialiased = fm.to_resolution(wide, (64, 62))
    assert antialiased.mean().item() == pytest.approx(1 / 8, abs=0.01)
    assert torch.equal(fm.to_resolution(image, (128, 64)) * 255, torch.tensor(image).movedim(-1, 1))
    assert [fm.regime_of(s) for s in ((64, 64), (1024, 576), (64, 62))] == [
        "code",
        "paper",
        "custom",
    ]


def test_curve_over_clips():
    table = fm.curve([np.array([100.0, 1, 2]), np.array([100.0, 3, np.inf])], [3, 3, 4, 8])
    assert table["value"] == {"0": 100, "1": 2, "2": None}
    assert table["value_std"] == {"0": 0, "1": 1, "2": None}
    assert table["mean"] is None
    assert table["video_setting"] == [3, 3, 4, 8]
    assert fm.curve([np.array([100.0, 1, 2])], [3, 3, 4, 8])["mean"] == 1.5  # 0 is the given frame
    assert fm.curve([np.array([7.0])], [1, 3, 4, 8])["mean"] == 7


# ---- FVD ----------------------------------------------------------------------------------------


def scipy_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The original's formula."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(np.real(shift + np.trace(cov_a + cov_b - 2 * root)))


def test_frechet_distance_of_known_gaussians():
    # +-sqrt((n-1)/2) s along each axis has exactly the unbiased covariance s^2 I (n = 4, D = 2).
    base = math.sqrt(1.5) * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).double()
    a, b = base * torch.tensor([1.0, 2.0]), base * torch.tensor([3.0, 5.0]) + 10.0
    expected = 2 * 100 + (3 - 1) ** 2 + (5 - 2) ** 2
    assert fvd.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 30), (5, 7)])
def test_frechet_distance_beside_scipy(n, m):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, 12)), rng.normal(0.3, 2, size=(m, 12))
    ours = fvd.frechet_distance(torch.tensor(a), torch.tensor(b))
    assert ours == pytest.approx(scipy_frechet(a, b), rel=1e-4)


def test_frechet_distance_of_equal_and_single_clips():
    features = 50 * noise(0, 6, 400)
    assert 0 <= fvd.frechet_distance(features, features) < 1e-6
    assert 0 <= fvd.frechet_distance(features, features.flip(0)) < 1e-6
    assert fvd.frechet_distance(torch.zeros(1, 4), torch.full((1, 4), 0.5)) == 1.0


def test_prefix_lengths():
    assert fvd.prefix_lengths(12) == [10, 11, 12]
    assert fvd.prefix_lengths(8) == [8]


def test_network_input_is_scaled_and_cropped_in_the_centre():
    ramp = torch.linspace(0, 1, 448).expand(2, 3, 112, 448)
    video = fvd.to_network_input(ramp)  # scaled to 896 columns, 336 ... 559 are kept
    assert video.shape == (3, 2, 224, 224)
    kept = (torch.arange(336, 560) / 2 - 0.25) / 447 * 2 - 1
    np.testing.assert_allclose(video[0, 0, 5], kept, atol=1e-5)
    grey = fvd.to_network_input(torch.full((1, 3, 60, 64), 0.75))
    assert grey.sub(0.5).abs().max() < 1e-6


class StubI3D(nn.Module):
    """Says how long the clip was; refuses fewer than five frames, as the I3D refuses short ones."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert return_features
        assert not rescale
        assert not resize
        if x.shape[2] < 5:
            raise RuntimeError("kernel size bigger than input")
        return torch.stack([torch.full((400,), float(x.shape[2])) + x.mean()])


@pytest.fixture(scope="module")
def stub_i3d(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    torch.jit.script(StubI3D()).save(str(path))
    return path


def test_i3d_is_called_as_in_the_original(stub_i3d):
    network = fvd.load_i3d(stub_i3d, CPU)
    features = fvd.clip_features(network, torch.full((7, 3, 16, 16), 0.75), [5, 6, 7])
    assert {t: f[0].item() for t, f in features.items()} == {5: 5.5, 6: 6.5, 7: 7.5}
    assert features[5].shape == (400,)
    with pytest.raises(ValueError, match=r"does not take clips of 4 frames .*kernel size.*longer"):
        fvd.clip_features(network, torch.zeros(4, 3, 16, 16), [4])


def test_i3d_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"i3d_torchscript\.pt"):
        fvd.load_i3d(tmp_path / "none.pt", CPU)
    (tmp_path / "bad.pt").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"bad\.pt is not a TorchScript file"):
        fvd.load_i3d(tmp_path / "bad.pt", CPU)


def test_random_video_network_is_seeded_and_sees_time():
    frames = noise(3, 4, 3, 64, 64)
    before = torch.random.get_rng_state()
    first, second = (fvd.clip_features(fvd.RandomVideoNetwork(5), frames, [4])[4] for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)
    shuffled = fvd.clip_features(fvd.RandomVideoNetwork(5), frames[[2, 0, 3, 1]], [4])[4]
    assert (first - shuffled).abs().max() > 1e-4


def test_views_look_where_they_are_called():
    columns = torch.arange(64.0)
    erp = torch.stack([columns, columns, columns]).div(64)[:, None].expand(3, 32, 64)[None]
    middles = {v: fvd.view_frames(erp, yaw)[0, 0, 112, 112].item() for v, yaw in fvd.VIEWS.items()}
    assert middles["front"] == pytest.approx(31.5 / 64, abs=0.02)
    assert middles["right"] == pytest.approx(47.5 / 64, abs=0.02)
    assert middles["left"] == pytest.approx(15.5 / 64, abs=0.02)


# ---- networks on images -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> tuple[Path, nn.Module]:
    torch.manual_seed(1)
    network = torchvision.models.alexnet(weights=None).eval()
    path = tmp_path_factory.mktemp("alex") / "alexnet.pth"
    state = network.state_dict()
    # The classifier is 200 MB of what LPIPS does not use.
    torch.save({k: v[:1].clone() if "classifier" in k else v for k, v in state.items()}, path)
    return path, network


@torch.inference_mode()
def test_lpips_by_hand(alexnet):
    path, trunk = alexnet
    network = perceptual.load_lpips(path, CPU)
    a, b = noise(0, 2, 3, 64, 64), noise(1, 2, 3, 64, 64)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = ((2 * image - 1 - shift) / scale for image in (a, b))
    total, heads = torch.zeros(2), iter(network.lins)
    for number, layer in enumerate(trunk.features):
        x, y = layer(x), layer(y)
        if number in (1, 4, 7, 9, 11):
            difference = (nn.functional.normalize(x) - nn.functional.normalize(y)).square()
            weights = next(heads).model[-1].weight
            assert weights.min() >= 0  # the calibrated heads of the package, not random ones
            maps = nn.functional.conv2d(difference, weights)
            maps = nn.functional.interpolate(maps, (64, 64), mode="bilinear")
            total += maps.mean((1, 2, 3))
    np.testing.assert_allclose(perceptual.lpips_distance(network, a, b), total, rtol=1e-4)
    assert perceptual.lpips_distance(network, a, a).tolist() == [0, 0]


def test_random_lpips_needs_no_file_and_is_seeded():
    before = torch.random.get_rng_state()
    a, b = noise(0, 1, 3, 32, 32), noise(1, 1, 3, 32, 32)
    values = [
        perceptual.lpips_distance(perceptual.load_lpips(None, CPU), a, b).item() for _ in range(2)
    ]
    assert values[0] == values[1] > 1e-4
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="32x32 pixels or more"):
        perceptual.lpips_distance(None, a[..., :16], b[..., :16])


def test_weight_files_are_checked(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pth is not a readable state dict"):
        perceptual.load_weights(tmp_path / "evil.pth", "--lpips_weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        perceptual.load_weights(tmp_path / "list.pth", "--weights")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is not torchvision's AlexNet: .*got 0 features"):
        perceptual.load_lpips(tmp_path / "other.safetensors", CPU)
    with pytest.raises(ValueError, match=r"--weights .*does not fit the network"):
        perceptual.load_inception(tmp_path / "other.safetensors", CPU)
    with pytest.raises(FileNotFoundError, match=r"--weights .*none\.pth does not exist"):
        perceptual.load_weights(tmp_path / "none.pth", "--weights")


def test_latent_features_are_preprocessed_as_in_the_original():
    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x.flatten(1)

    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize((299, 299)),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    expected = transform(Image.fromarray(image)).flatten()
    np.testing.assert_allclose(perceptual.latent_features(Spy(), image, 299), expected, atol=1e-5)


def test_inception_from_a_file_and_latent_mse(tmp_path):
    network = perceptual.load_inception(None, CPU, seed=3)
    state = {**network.state_dict(), "last_linear.weight": torch.zeros(2, 1536)}
    save_file(state, tmp_path / "inception_v4.safetensors")
    loaded = perceptual.load_inception(tmp_path / "inception_v4.safetensors", CPU)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    assert perceptual.latent_features(loaded, a, 96).shape == (1536,)
    assert perceptual.latent_mse(loaded, a, a, 96) == 0
    difference = perceptual.latent_mse(loaded, a, b, 96)
    assert difference == pytest.approx(perceptual.latent_mse(network, a, b, 96))
    assert difference > 1e-6


# ---- true panoramas -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> tuple[Path, list[np.ndarray]]:
    """Record and frames of a procedural clip of four frames, 32 x 64."""
    scene, poses = find_walk("test", "room", 0, GIVEN_SIZE)
    path = tmp_path_factory.mktemp("clip") / "clip.json"
    start = {"R": poses[0].R.tolist(), "t": poses[0].t.tolist()}
    write_json(path, {"kind": "room", "seed": scene.seed, "start": start, "aa": GIVEN_SIZE.aa})
    return path, [render_erp(scene, pose, GIVEN_SIZE) for pose in poses]


def pose(frame: int, x_m: float = 0.0, z_m: float = 0.0, heading_deg: float = 0.0) -> dict:
    return {"frame": frame, "x_m": x_m, "z_m": z_m, "heading_deg": heading_deg}


def test_true_panoramas_are_the_frames_of_the_clip(walk):
    path, images = walk
    place = loop.read_place(path)
    for i, image in enumerate(images):
        truth = loop.true_panorama(place, loop.LoggedPose(**pose(i, z_m=0.4 * i)), (32, 64))
        # float32 ray directions: a few rays fall on the other side of an edge
        assert ((truth * 255).movedim(0, -1).numpy() - image).__abs__().mean() < 0.05


def test_heading_turns_right_and_x_is_right(walk):
    place = loop.read_place(walk[0])
    start = loop.true_panorama(place, loop.LoggedPose(**pose(0)), (32, 64))
    turned = loop.true_panorama(place, loop.LoggedPose(**pose(0, heading_deg=90)), (32, 64))
    assert (start.roll(-16, -1) - turned).abs().mean() < 1e-3  # content moves left
    sideways = loop.true_pose(place, loop.LoggedPose(**pose(0, x_m=1.0)))
    axes = place.start.R.T @ (sideways.t - place.start.t)
    np.testing.assert_allclose(axes, [1, 0, 0], atol=1e-6)


def test_exploration_beside_turning_only(walk, tmp_path):
    path, images = walk
    poses = [pose(0), pose(1, z_m=0.4), pose(3, z_m=1.2), pose(4)]
    frames = [images[0], images[1], images[3], images[0]]
    for row, image in zip(poses, frames, strict=True):
        write_image(tmp_path / "frames" / f"frame_{row['frame']:04d}.png", image)
    write_json(tmp_path / "poses.json", {"poses": poses, "step_m": 0.4})
    scores = loop.score_exploration(tmp_path, path)
    rows = scores["frames"]
    assert [row["frame"] for row in rows] == [0, 1, 3, 4]
    assert min(row["psnr"] for row in rows) > 45
    assert [rows[i]["baseline_psnr"] for i in (0, 3)] == [100, 100]
    assert max(rows[i]["baseline_psnr"] for i in (1, 2)) < 30
    assert scores["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    assert scores["closure"]["is_closed"]
    assert scores["closure"]["psnr"] == rows[3]["psnr"]


def test_poses_in_obstacles_are_left_out(walk, tmp_path):
    path, images = walk
    poses = [pose(0), pose(1, z_m=100.0)]
    for i in range(2):
        write_image(tmp_path / "frames" / f"frame_{i:04d}.png", images[0])
    write_json(tmp_path / "poses.json", {"poses": poses})
    scores = loop.score_exploration(tmp_path, path)
    assert [row["is_blocked"] for row in scores["frames"]] == [False, True]
    assert scores["blocked"] == 1
    assert scores["mean"]["psnr"] == scores["frames"][0]["psnr"]
    assert not scores["closure"]["is_closed"]
    assert scores["closure"]["distance_m"] == 100
    write_json(tmp_path / "poses.json", {"poses": poses[1:]})
    with pytest.raises(ValueError, match="all 1 poses lie in obstacles"):
        loop.score_exploration(tmp_path, path)


def test_pose_log_and_clip_errors(walk, tmp_path):
    path, images = walk
    log = tmp_path / "poses.json"
    with pytest.raises(FileNotFoundError, match=r"poses\.json does not exist"):
        loop.score_exploration(tmp_path, path)
    for bad in ('{"poses": [{"frame": 0}]}', "[1", '{"poses": 3}', "[]"):
        log.write_text(bad)
        with pytest.raises(ValueError, match="is not a pose log"):
            loop.read_poses(log)
    write_json(log, {"poses": []})
    with pytest.raises(ValueError, match="holds no pose"):
        loop.read_poses(log)
    write_json(tmp_path / "other.json", {"kind": "room"})
    with pytest.raises(ValueError, match="is not the record of a procedural clip"):
        loop.read_place(tmp_path / "other.json")
    write_json(log, {"poses": [pose(0), pose(1)]})
    write_image(tmp_path / "frames" / "frame_0000.png", images[0])
    write_image(tmp_path / "frames" / "frame_0001.png", images[0][:, :32])
    with pytest.raises(ValueError, match=r"frame_0001\.png is 32x32, the first frame 64x32"):
        loop.score_exploration(tmp_path, path)
    assert json.loads(path.read_text())["kind"] == "room"
