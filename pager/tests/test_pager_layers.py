"""Cube layers against explicit float64 references written from the geometry of the cube."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from pager.checkpoint import load_model
from pager.layers import (
    CubeAttnProcessor,
    CubeConv2d,
    CubeGroupNorm,
    cubify,
    erp_coordinates,
    pad_faces,
    rope_table,
    rotate_pairs,
)
from shared_pano_utils import rays
from shared_pano_utils.geometry import CENTER, PY360_E2X, xyz_to_face

# Right, up and forward axis of every face, F R B L U D, in x right, y up, z forward; from the
# corner table of the original's resampler, independent of the package.
AXES = torch.tensor(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
        [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    ],
    dtype=torch.float64,
)


def face_points(side: int) -> Tensor:
    """Points (6, S, S, 3) on the cube |x| <= 1; border pixels lie on its edges."""
    t = torch.linspace(-1, 1, side, dtype=torch.float64)
    weights = torch.stack([t.expand(side, side), -t[:, None].expand(side, side)], -1)
    weights = torch.cat([weights, torch.ones(side, side, 1, dtype=torch.float64)], -1)
    return torch.einsum("hwk,fkc->fhwc", weights, AXES)


def reference_pad(x: Tensor) -> Tensor:
    """`pad_faces` of one panorama by looking every strip pixel up in 3D, (6, C, S+2, S+2)."""
    side = x.shape[-1]
    points = face_points(side)
    flat_points, flat_values = points.reshape(-1, 3), x.movedim(1, -1).reshape(-1, x.shape[1])
    padded = F.pad(x, (1, 1, 1, 1))
    for face in range(6):
        right, up = AXES[face, :2]
        sides = {"top": up, "bottom": -up, "left": -right, "right": right}
        for name, outward in sides.items():
            neighbour = int((AXES[:, 2] @ outward).argmax())
            for i in range(side):
                row, column = {"top": (0, i), "bottom": (side - 1, i), "left": (i, 0), "right": (i, side - 1)}[name]  # fmt: skip
                distance = (flat_points - points[face, row, column]).norm(dim=-1)
                distance[: neighbour * side**2] = math.inf
                distance[(neighbour + 1) * side**2 :] = math.inf
                assert distance.min() < 1e-12  # the neighbour has a pixel at this very place
                target = {"top": (0, i + 1), "bottom": (side + 1, i + 1), "left": (i + 1, 0), "right": (i + 1, side + 1)}[name]  # fmt: skip
                padded[face, :, target[0], target[1]] = flat_values[distance.argmin()]
    for row, inner_row in ((0, 1), (-1, -2)):
        for column, inner_column in ((0, 1), (-1, -2)):
            corner = (padded[:, :, row, inner_column] + padded[:, :, inner_row, column]) / 2
            padded[:, :, row, column] = corner
    return padded


def cube(*shape: int, panoramas: int = 1) -> Tensor:
    return torch.randn(6 * panoramas, *shape, dtype=torch.float64)


# ---- padding and convolution --------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_padding_equals_lookup_in_three_dimensions(side):
    if side == 1:  # one pixel has no position on the edge; only the neighbours can be checked
        padded = pad_faces(torch.arange(6.0).view(6, 1, 1, 1))[:, 0]
        assert padded[:, 0, 1].tolist() == [4, 4, 4, 4, 2, 0]
        return
    x = cube(2, side, side)
    torch.testing.assert_close(pad_faces(x), reference_pad(x), atol=0, rtol=0)


def test_padding_continues_positions_and_belongs_to_the_face_that_follows():
    side = 6
    points = face_points(side).movedim(-1, 1)
    # A neighbour's border repeats the position of the own border.
    expected = F.pad(points, (1, 1, 1, 1), mode="replicate")
    torch.testing.assert_close(pad_faces(points), expected, atol=1e-15, rtol=0)
    # One pixel beyond the face plane, the neighbour is the face that the ray meets.
    numbers = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, side, side)
    half = side + 2
    beyond = rays("cube", side, fov=90, reg=CENTER, normalize=False, dtype=torch.float64)
    step = beyond[:, :, 1] - beyond[:, :, 0]
    down = beyond[:, 1] - beyond[:, 0]
    padded = pad_faces(numbers)[:, 0]
    for i in range(side):
        left, right = beyond[:, i, 0] - step[:, 0], beyond[:, i, -1] + step[:, 0]
        top, bottom = beyond[:, 0, i] - down[:, 0], beyond[:, -1, i] + down[:, 0]
        assert torch.equal(xyz_to_face(left)[0], padded[:, i + 1, 0].long())
        assert torch.equal(xyz_to_face(right)[0], padded[:, i + 1, half - 1].long())
        assert torch.equal(xyz_to_face(top)[0], padded[:, 0, i + 1].long())
        assert torch.equal(xyz_to_face(bottom)[0], padded[:, half - 1, i + 1].long())


def test_padding_equals_the_original_library_but_for_its_empty_corners():
    library = pytest.importorskip("pytorch360convert.pytorch360convert")
    x = cube(3, 5, 5)
    theirs = library.pad_cube_faces(x.movedim(1, -1)).movedim(-1, 1)
    ours = pad_faces(x)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        ours[:, :, corner[0], corner[1]] = 0
    torch.testing.assert_close(theirs, ours, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (6, 3, 4, 5)])
def test_padding_refuses_what_is_no_cube(shape):
    with pytest.raises(ValueError, match="6 square faces"):
        pad_faces(torch.zeros(shape))


@pytest.mark.parametrize(("stride", "panoramas"), [(1, 1), (2, 1), (1, 2)])
def test_convolution_equals_reference(stride, panoramas):
    conv = nn.Conv2d(3, 4, 3, stride, padding=1).double()
    x = cube(3, 6, 6, panoramas=panoramas)
    padded = torch.cat([reference_pad(part) for part in x.split(6)])
    expected = F.conv2d(padded, conv.weight, conv.bias, stride)
    stock = conv(x)
    conv.__class__ = CubeConv2d
    torch.testing.assert_close(conv(x), expected, atol=1e-12, rtol=0)
    if stride == 1:  # away from the borders it is the stock layer
        inner = (..., slice(1, -1), slice(1, -1))
        torch.testing.assert_close(conv(x)[inner], stock[inner], atol=1e-12, rtol=0)


def test_one_sided_convolution_equals_reference(make_vae):
    vae = make_vae().double()
    down = vae.encoder.down_blocks[0].downsamplers[0]
    assert cubify(vae)["one_sided"] == 1
    x = cube(8, 8, 8)
    expected = F.conv2d(reference_pad(x)[..., 1:, 1:], down.conv.weight, down.conv.bias, 2)
    torch.testing.assert_close(down(x), expected, atol=1e-12, rtol=0)


# ---- norm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [(5, 5), (7,)])
def test_norm_is_a_plain_group_norm_of_the_concatenated_faces(tail):
    plain = nn.GroupNorm(4, 8).double()
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    x = cube(8, *tail, panoramas=2) * torch.arange(1, 13).view(12, *[1] * (len(tail) + 1))
    side_by_side = torch.stack([torch.cat(list(part), -1) for part in x.split(6)])
    expected = plain(side_by_side).unflatten(-1, (6, tail[-1])).movedim(-2, 1).flatten(0, 1)
    norm = copy.deepcopy(plain)
    norm.__class__ = CubeGroupNorm
    torch.testing.assert_close(norm(x), expected, atol=1e-12, rtol=0)
    same = x[:1].expand(6, -1, *tail)  # equal faces: the stock layer
    torch.testing.assert_close(norm(same), plain(same), atol=1e-12, rtol=0)


# ---- attention ----------------------------------------------------------------------------------


def make_attention(use_rope: bool, dim: int = 12, heads: int = 3, **options) -> Attention:
    attention = Attention(dim, heads=heads, dim_head=dim // heads, **options)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.7)
    attention.set_processor(CubeAttnProcessor(use_rope=use_rope))
    return attention.double()


def rotations(side: int, head_dim: int) -> Tensor:
    """Rotation of every channel pair as a complex number, (6*S*S, D/2), from 3D positions."""
    x, y, z = face_points(side).reshape(-1, 3).unbind(-1)
    longitude, down = torch.atan2(x, z), -torch.atan2(y, torch.hypot(x, z))
    pairs = head_dim // 2
    first, second = pairs // 2, pairs - pairs // 2
    angles = [longitude * 10000 ** (-2 * i / first) for i in range(first)]
    angles += [down * 10000 ** (-2 * i / second) for i in range(second)]
    angle = torch.stack(angles, -1)
    return torch.polar(torch.ones_like(angle), angle)


def reference_attention(attention: Attention, x: Tensor, rotation: Tensor | None) -> Tensor:
    """Joint attention of one panorama (6, L, C), head by head with an explicit softmax."""
    tokens = x.flatten(0, 1)
    q, k, v = attention.to_q(tokens), attention.to_k(tokens), attention.to_v(tokens)
    width = q.shape[-1] // attention.heads
    outputs = []
    for head in range(attention.heads):
        qh, kh, vh = (t[:, head * width : (head + 1) * width] for t in (q, k, v))
        if rotation is not None:
            qh, kh = (
                torch.view_as_real(
                    torch.view_as_complex(t.reshape(len(t), -1, 2)) * rotation
                ).flatten(1)
                for t in (qh.contiguous(), kh.contiguous())
            )
        outputs.append(torch.softmax(qh @ kh.T / math.sqrt(width), -1) @ vh)
    return attention.to_out[0](torch.cat(outputs, -1)).view_as(x)


@pytest.mark.parametrize(
    ("use_rope", "dim", "heads"), [(False, 12, 3), (True, 16, 2), (True, 12, 2)]
)
def test_self_attention_equals_reference(use_rope, dim, heads):
    side = 3
    attention = make_attention(use_rope, dim, heads)
    x = cube(side * side, dim, panoramas=2)
    rotation = rotations(side, dim // heads) if use_rope else None
    expected = torch.cat([reference_attention(attention, part, rotation) for part in x.split(6)])
    # The rotary table and the rotated queries are float32.
    torch.testing.assert_close(attention(x), expected, atol=2e-5 if use_rope else 1e-12, rtol=0)
    if use_rope:
        plain = torch.cat([reference_attention(attention, part, None) for part in x.split(6)])
        assert (attention(x) - plain).abs().max() > 0.01


def test_map_attention_equals_reference():
    attention = make_attention(
        False, 8, 1, norm_num_groups=4, residual_connection=True, rescale_output_factor=1.5, bias=True
    )  # fmt: skip
    cubify(attention)
    assert isinstance(attention.group_norm, CubeGroupNorm)
    x = cube(8, 4, 4)
    normed = attention.group_norm(x).flatten(2).transpose(1, 2)
    out = reference_attention(attention, normed, None).transpose(1, 2).view_as(x)
    torch.testing.assert_close(attention(x), (out + x) / 1.5, atol=1e-12, rtol=0)


def test_cross_attention_ignores_copies_of_the_text():
    attention = make_attention(True, 12, 3, cross_attention_dim=10)
    x, text = cube(9, 12), torch.randn(1, 5, 10, dtype=torch.float64)
    once = attention(x, encoder_hidden_states=text.expand(6, -1, -1))
    six_times = attention(x, encoder_hidden_states=text.repeat(1, 6, 1).expand(6, -1, -1))
    torch.testing.assert_close(once, six_times, atol=1e-12, rtol=0)
    # Each face alone, without positions: the stock processor.
    attention.set_processor(type(Attention(4).processor)())
    stock = attention(x, encoder_hidden_states=text.expand(6, -1, -1))
    torch.testing.assert_close(once, stock, atol=1e-12, rtol=0)


def test_masks_are_refused():
    with pytest.raises(ValueError, match="pass None"):
        make_attention(False)(cube(9, 12), attention_mask=torch.zeros(6, 9))


def test_faces_are_exchangeable_without_positions_only():
    order = torch.tensor([3, 0, 5, 2, 4, 1])
    x = cube(9, 12)
    plain, rotary = make_attention(False), make_attention(True)
    torch.testing.assert_close(plain(x[order]), plain(x)[order], atol=1e-12, rtol=0)
    assert (rotary(x[order]) - rotary(x)[order]).abs().max() > 0.01


def test_turning_the_head_leaves_rotary_scores_unchanged():
    """R is F turned by 90 degrees, so scores between its tokens are those of F's tokens."""
    side, head_dim = 4, 8
    table = rope_table(side, head_dim, torch.device("cpu"))
    q, k = torch.randn(2, 1, head_dim).expand(2, 6 * side**2, head_dim)
    scores = (rotate_pairs(q, table) @ rotate_pairs(k, table).T).unflatten(0, (6, -1))
    scores = scores.unflatten(2, (6, -1))
    torch.testing.assert_close(scores[0, :, 0], scores[1, :, 1], atol=1e-5, rtol=0)
    assert scores[0, :, 0].std() > 0.1


def test_coordinates_are_those_of_the_cube():
    x, y, z = face_points(7).unbind(-1)
    expected = torch.stack(
        [torch.atan2(x, z) / math.pi, -torch.atan2(y, torch.hypot(x, z)) * 2 / math.pi], 1
    )
    ours = erp_coordinates(7)
    # The back meridian is both -1 and 1, the poles have no longitude.
    free = (expected[:, 0].abs() > 1 - 1e-9) | (expected[:, 1].abs() > 1 - 1e-9)
    torch.testing.assert_close(ours[:, 0][~free], expected[:, 0][~free], atol=1e-12, rtol=0)
    assert free.sum() == 7 + 2 + 2 * 3
    torch.testing.assert_close(ours[:, 1], expected[:, 1], atol=1e-12, rtol=0)
    directions = rays("cube", 7, reg=PY360_E2X, dtype=torch.float64)
    normalized = F.normalize(torch.stack([x, -y, z], -1), dim=-1)
    torch.testing.assert_close(directions, normalized, atol=1e-12, rtol=0)


# ---- whole networks -----------------------------------------------------------------------------


def test_cubify_changes_no_keys_and_no_values(make_unet, make_vae):
    for network, one_sided, attention in ((make_unet(), 0, 8), (make_vae(), 1, 2)):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        changed = cubify(network, use_rope=True)
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        padded = [m for m in convolutions if m.kernel_size == (3, 3)]
        norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
        assert all(type(m) is CubeConv2d for m in padded)
        assert all(type(m) is CubeGroupNorm for m in norms)
        assert changed == {
            "conv": len(padded), "one_sided": one_sided, "norm": len(norms), "attention": attention,
        }  # fmt: skip


def test_training_after_inference_in_one_process(make_model):
    model = make_model()
    faces, latents = torch.rand(1, 6, 3, 18, 18), torch.randn(6, 4, 9, 9)  # sizes used nowhere else
    with torch.inference_mode():
        model(faces)
    model.denoise(latents).sum().backward()
    assert model.unet.conv_in.weight.grad.isfinite().all()


def test_two_panoramas_are_independent(make_model):
    model = make_model()
    faces = torch.rand(2, 6, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        both = model.encode(faces)
        alone = torch.cat([model.encode(part) for part in faces.split(1)])
        torch.testing.assert_close(both, alone, atol=5e-6, rtol=0)
        latents = torch.randn(12, 4, 8, 8)
        apart = latents.split(6)
        torch.testing.assert_close(
            model.denoise(latents), torch.cat([model.denoise(x) for x in apart]), atol=5e-6, rtol=0
        )
        torch.testing.assert_close(
            model.decode(latents), torch.cat([model.decode(x) for x in apart]), atol=5e-6, rtol=0
        )


def test_six_equal_flat_faces_give_the_stock_network(make_unet):
    """No face differs from its neighbours and no border exists: replicate padding is exact then."""
    stock, cubed = make_unet(), make_unet()
    for module in stock.modules():
        if isinstance(module, nn.Conv2d) and module.padding == (1, 1):
            module.padding_mode = "replicate"
    cubify(cubed)
    x = torch.randn(1, 8, 1, 1).expand(6, -1, 8, 8)
    text = torch.randn(1, 4, 32).expand(6, -1, -1)
    with torch.no_grad():
        expected, actual = stock(x, 999, text).sample, cubed(x, 999, text).sample
    torch.testing.assert_close(actual, expected, atol=5e-6, rtol=0)
    assert actual.std((0, 2, 3)).max() < 1e-5


def test_uv_channels_follow_the_two_latents(make_model):
    model = make_model(unet_positional_encoding="uv")
    seen = []
    model.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    latents = torch.randn(12, 4, 8, 8)
    with torch.no_grad():
        model.denoise(latents)
    assert torch.equal(seen[0][:, :4], latents)
    assert not seen[0][:, 4:8].any()
    expected = erp_coordinates(8).float().repeat(2, 1, 1, 1)
    torch.testing.assert_close(seen[0][:, 8:], expected)


def test_rope_switch(checkpoints):
    latents = torch.randn(6, 4, 8, 8)
    with torch.no_grad():
        results = {
            rope: load_model(checkpoints["depth"], rope=rope).denoise(latents)
            for rope in ("auto", "on", "off")
        }
    assert torch.equal(results["auto"], results["on"])
    assert (results["auto"] - results["off"]).abs().max() > 1e-4
