"""Memory and speed modes give the numbers of the plain path."""

import copy

import numpy as np
import pytest
import torch

from pager.checkpoint import load_model
from pager.layers import CubeGroupNorm
from pager.pipeline import PagerPipeline
from pager.streaming import face_by_face, stream_faces

CPU = torch.device("cpu")


@pytest.fixture
def plain(checkpoints, panorama) -> np.ndarray:
    depth = PagerPipeline.from_pretrained(checkpoints["depth"])(panorama).depth
    assert depth is not None
    return depth


@pytest.mark.parametrize(
    "options",
    [
        {"offload": True},
        {"stream_vae": True},
        {"offload": True, "stream_vae": True},
        {"channels_last": True},
    ],
    ids=lambda options: "+".join(options),
)
def test_placement_changes_nothing(options, checkpoints, panorama, plain):
    pipeline = PagerPipeline.from_pretrained(checkpoints["depth"], **options)
    for _ in range(2):  # networks go back where they were
        depth = pipeline(panorama).depth
        np.testing.assert_allclose(depth, plain, rtol=2e-4)


def test_compiled_networks_give_the_same(checkpoints, panorama, plain):
    # The graphs are captured and lowered as for any back-end, and run without a compiler.
    pipeline = PagerPipeline.from_pretrained(checkpoints["depth"], compile_backend="aot_eager")
    np.testing.assert_allclose(pipeline(panorama).depth, plain, rtol=2e-5)


def test_streamed_vae_of_two_panoramas(checkpoints):
    model = load_model(checkpoints["depth"])
    faces = torch.rand(2, 6, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = model.encode(faces)
        images = model.decode(latents)
        streamed = copy.deepcopy(model)
        stream_faces(streamed.vae, CPU)
        torch.testing.assert_close(streamed.encode(faces), latents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(streamed.decode(latents), images, atol=1e-5, rtol=1e-5)


def test_streamed_norm_against_float64():
    """Statistics merged over faces of very different means."""
    norm = CubeGroupNorm(4, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(6, 8, 5, 5) + 30 * torch.arange(6.0).view(6, 1, 1, 1)
    reference = copy.deepcopy(norm).double()(x.double())
    holder = torch.nn.Sequential(norm)
    stream_faces(holder, CPU)
    assert (holder(x).double() - reference).abs().max() < 1e-5


def test_one_face_at_a_time_reaches_the_device():
    seen = []
    x = torch.rand(6, 2, 4, 4)
    out = face_by_face(x, CPU, lambda face: seen.append(face.shape) or 2 * face)
    assert torch.equal(out, 2 * x)
    assert seen == [(1, 2, 4, 4)] * 6


def test_bfloat16_depth_is_not_quantised(checkpoints, panorama):
    """The last layers run in float32: a bfloat16 result would have 3 % steps at 10 m."""
    pipeline = PagerPipeline.from_pretrained(checkpoints["depth"], precision="bfloat16")
    depth = pipeline(panorama, (64, 128)).depth
    assert depth is not None
    assert len(np.unique(depth)) > 0.9 * depth.size
    faces = torch.rand(1, 6, 3, 16, 16).bfloat16()
    with torch.inference_mode():
        decoded = pipeline.model(faces)
    assert decoded.dtype == torch.float32
    assert len(decoded.unique()) > 0.9 * decoded.numel()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"offload": True}, {"stream_vae": True}])
def test_modes_on_a_gpu(options, checkpoints, panorama, plain):
    pipeline = PagerPipeline.from_pretrained(
        checkpoints["depth"], device="cuda", precision="float32", **options
    )
    np.testing.assert_allclose(pipeline(panorama).depth, plain, rtol=1e-2)
