"""Image quality and seam metrics for panoramas.

Quality is averaged over the sphere: every pixel counts with its solid angle, and windows wrap at
+-180 degrees and continue across the poles. Seam metrics compare the step across a border with
the steps beside it, so that 1 means "no seam" whatever the content.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ._arrays import Array, ArrayT, Layout, to_torch
from ._surface import extend
from .geometry import FACE_NAMES, axis_coordinates, sphere_weights
from .transforms import erp_to_cubemap

# First face and side, second face and side, and whether the pixels run in opposite directions.
_EDGES = (
    ("F", "right", "R", "left", False),
    ("R", "right", "B", "left", False),
    ("B", "right", "L", "left", False),
    ("L", "right", "F", "left", False),
    ("F", "top", "U", "bottom", False),
    ("R", "top", "U", "right", True),
    ("B", "top", "U", "top", True),
    ("L", "top", "U", "left", False),
    ("F", "bottom", "D", "top", False),
    ("R", "bottom", "D", "right", False),
    ("B", "bottom", "D", "bottom", True),
    ("L", "bottom", "D", "left", True),
)
CUBE_EDGES = tuple(first + second for first, _, second, _, _ in _EDGES)
"""Names of the twelve cube edges in the order of the results here: "FR", "RB", ... "LD"."""


def psnr(
    a: ArrayT, b: ArrayT, *, data_range: float | None = None, layout: Layout | None = None
) -> ArrayT:
    """Peak signal-to-noise ratio of images, every pixel counting the same.

    Args:
        a: (*, C, H, W), NumPy (*, H, W, C); of any projection.
        b: of the same shape.
        data_range: largest minus smallest possible value; None is 1 for floats, 255 for uint8 and
            65535 for uint16.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Decibels per image (*), in the kind of `a`; infinite for equal images.

    >>> round(psnr(torch.zeros(3, 4, 8), torch.full((3, 4, 8), 0.1)).item(), 4)
    20.0
    """
    x, y, peak = _image_pair(a, b, data_range, layout)
    return _in_kind(_decibels((x - y).square().mean((-3, -2, -1)), peak), a)


def ws_psnr(
    a: ArrayT, b: ArrayT, *, data_range: float | None = None, layout: Layout | None = None
) -> ArrayT:
    """Peak signal-to-noise ratio of panoramas, every pixel counting with its solid angle.

    Args:
        a: ERP (*, C, H, W), NumPy (*, H, W, C).
        b: of the same shape.
        data_range: largest minus smallest possible value; None is 1 for floats, 255 for uint8 and
            65535 for uint16.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Decibels per image (*), in the kind of `a`; infinite for equal images.

    Source: Sun, Lu, Yu, "Weighted-to-Spherically-Uniform Quality Evaluation for Omnidirectional
        Video", 2017. Its cosine weights are proportional to the solid angles used here.

    >>> reference, changed = torch.zeros(4, 8), torch.zeros(4, 8)
    >>> changed[0] = 0.1  # a polar row is 0.1464 of the sphere, not a quarter
    >>> round((ws_psnr(reference, changed) - psnr(reference, changed)).item(), 4)
    2.3226
    """
    x, y, peak = _image_pair(a, b, data_range, layout)
    return _in_kind(_decibels(_sphere_mean((x - y).square()), peak), a)


def ws_ssim(
    a: ArrayT, b: ArrayT, *, data_range: float | None = None, layout: Layout | None = None
) -> ArrayT:
    """Structural similarity of panoramas, every window counting with its centre's solid angle.

    Gaussian windows of 11 x 11 pixels, sigma 1.5, that wrap at +-180 degrees and continue across
    the poles; constants 0.01 and 0.03; averaged over channels.

    Args:
        a: ERP (*, C, H, W) of even width, NumPy (*, H, W, C).
        b: of the same shape.
        data_range: largest minus smallest possible value; None is 1 for floats, 255 for uint8 and
            65535 for uint16.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Similarity per image (*), in the kind of `a`, at most 1.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural
        Similarity", 2004, with the weights of `ws_psnr`.

    >>> image = torch.linspace(0, 1, 16 * 32).reshape(16, 32)
    >>> round(ws_ssim(image, image).item(), 6), bool(ws_ssim(image, 1 - image) < 0.5)
    (1.0, True)
    """
    x, y, peak = _image_pair(a, b, data_range, layout)
    if x.shape[-1] % 2:
        raise ValueError(
            f"the panorama is {x.shape[-1]} pixels wide: windows across the poles need an even "
            "width; resize it"
        )
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return _in_kind(_sphere_mean(luminance * structure), a)


def seam_error(erp: ArrayT, *, layout: Layout | None = None) -> dict[str, ArrayT]:
    """Measure seams at +-180 degrees, at the poles and along the twelve cube edges.

    Args:
        erp: panorama (*, C, H, W), NumPy (*, H, W, C), at least 6 columns.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Arrays of the kind of `erp`, in units of the image, means over rows and channels:

        * ``wrap_jump`` (*): mean ``|first column - last column|``;
        * ``wrap_ratio`` (*): that over the mean step of the four column pairs beside it;
        * ``wrap_curv`` (*): mean ``|step across - mean of the steps on its two sides|``;
        * ``pole_std`` (*, 2): standard deviation along the first and the last row;
        * ``edge_ratio`` (*, 12): as ``wrap_ratio``, across each of `CUBE_EDGES`.

        A ratio of 1 means no seam (smooth images: cube edges about 3 / S less at face side S).

    >>> panorama = torch.arange(16.0).expand(8, 16)  # a ramp: 15 steps of 1 and a jump of 15
    >>> seam_error(panorama)["wrap_ratio"].item()
    15.0
    """
    image, _ = to_torch(erp, layout, name="erp")
    x = _floating(image)
    width = x.shape[-1]
    if width < 6:
        raise ValueError(f"the panorama is {width} pixels wide: at least 6 columns are needed")
    # Columns -3, -2, -1, 0, 1, 2: the seam lies between the third and the fourth.
    step = torch.cat([x[..., -3:], x[..., :3]], -1).diff(dim=-1)  # [*, c, h, 5]
    jump = step[..., 2].abs().mean((-2, -1))
    beside = step[..., [0, 1, 3, 4]].abs().mean((-3, -2, -1))
    curvature = step[..., 2] - (step[..., 1] + step[..., 3]) / 2
    faces, _ = to_torch(erp_to_cubemap(x, max(3, width // 4)), "chw", cube=True)
    result = {
        "wrap_jump": jump,
        "wrap_ratio": _ratio(jump, beside, _rounding(x)),
        "wrap_curv": curvature.abs().mean((-2, -1)),
        "pole_std": x[..., [0, -1], :].std(-1, correction=0).mean(-2),
        "edge_ratio": _edge_steps(faces)[1],
    }
    return {name: _in_kind(value, erp) for name, value in result.items()}


def cube_edge_jumps(
    cube: ArrayT,
    *,
    relative: bool = False,
    thresholds: tuple[float, float, float] = (0.010, 0.008, 0.05),
    layout: Layout | None = None,
) -> dict[str, ArrayT]:
    """Compare the step across each cube edge with the steps beside it.

    The excess of a place on an edge is the step across it minus the mean step of the two pairs of
    pixels on either side, all on a great circle perpendicular to the edge; the last three results
    count it.

    Args:
        cube: faces F R B L U D (*, 6, C, S, S), NumPy (*, 6, S, S, C), at least 3 pixels wide;
            finite, and positive if `relative`.
        relative: take steps of the logarithm: relative jumps, for depth.
        thresholds: what counts as an excess for density, prevalence and severity.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Arrays of the kind of `cube`, means over pixels and channels, edges as in `CUBE_EDGES`:

        * ``jump`` (*, 12): mean absolute step across the edge;
        * ``ratio`` (*, 12): that over the mean absolute step of the four pairs beside it;
        * ``density`` (*): part of the places whose excess is above the first threshold;
        * ``prevalence`` (*): part of the edges whose mean excess is above the second one;
        * ``severity`` (*): part of the places whose excess is above the third one.

    Source: the idea and the thresholds of the last three are those of the seam evaluation of the
        PaGeR version of May 2026; the definitions are ours, since its own are not published.

    >>> faces = torch.zeros(6, 1, 8, 8)
    >>> faces[0] = 1.0  # F differs from its four neighbours
    >>> cube_edge_jumps(faces)["jump"].tolist()
    [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    """
    faces, _ = to_torch(cube, layout, cube=True, name="cube")
    if faces.shape[-1] < 3:
        raise ValueError(f"the faces are {faces.shape[-1]} pixels wide: at least 3 are needed")
    x = _floating(faces)
    jump, ratio, excess = _edge_steps(x.log() if relative else x)
    dense, prevalent, severe = thresholds
    result = {
        "jump": jump,
        "ratio": ratio,
        "density": (excess > dense).to(x.dtype).mean((-3, -2, -1)),
        "prevalence": (excess.mean((-2, -1)) > prevalent).to(x.dtype).mean(-1),
        "severity": (excess > severe).to(x.dtype).mean((-3, -2, -1)),
    }
    return {name: _in_kind(value, cube) for name, value in result.items()}


# ---- shared steps -------------------------------------------------------------------------------


def _image_pair(
    a: Array, b: Array, data_range: float | None, layout: Layout | None
) -> tuple[Tensor, Tensor, float]:
    x, _ = to_torch(a, layout, name="a")
    y, _ = to_torch(b, layout, name="b")
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(
            f"the images differ in shape or dtype: {tuple(a.shape)} {x.dtype} and "
            f"{tuple(b.shape)} {y.dtype}; make them equal first"
        )
    if data_range is None:
        data_range = 1.0 if x.is_floating_point() else float(_integer_peak(x.dtype))
    if data_range <= 0:
        raise ValueError(f"data_range is {data_range}: it must be positive")
    return _floating(x), _floating(y), data_range


def _integer_peak(dtype: torch.dtype) -> int:
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max


def _floating(x: Tensor) -> Tensor:
    """Float32 or float64 values; integers become float64."""
    if x.is_floating_point():
        return x.to(torch.promote_types(x.dtype, torch.float32))
    return x.double()


def _in_kind(value: Tensor, like: ArrayT) -> ArrayT:
    return cast(ArrayT, value if isinstance(like, Tensor) else value.numpy())


def _decibels(mean_square: Tensor, peak: float) -> Tensor:
    return 10 * torch.log10(peak**2 / mean_square)


def _sphere_mean(x: Tensor) -> Tensor:
    """Mean over the sphere and the channels of maps (*, C, H, W)."""
    weights = sphere_weights("erp", (x.shape[-2], x.shape[-1]), device=x.device).to(x.dtype)
    return (x * weights).sum((-2, -1)).mean(-1) / weights.sum()


def _blur(x: Tensor) -> Tensor:
    """Average panoramas (*, C, H, W) with Gaussian windows of 11 x 11 pixels, sigma 1.5."""
    offset = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    window = torch.softmax(-(offset**2) / (2 * 1.5**2), 0)
    maps = extend(extend(x, 5, -2, "erp"), 5, -1, "erp").flatten(0, -3)[:, None]
    blurred = functional.conv2d(
        functional.conv2d(maps, window[None, None, None]), window[:, None][None, None]
    )
    return blurred.reshape(x.shape)


def _edge_steps(cube: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Jump (*, 12), ratio (*, 12) and excess (*, 12, C, S) across the twelve edges of cubes."""
    across, beside = [], []
    for first, first_side, second, second_side, is_reversed in _EDGES:
        here = _inward_lines(cube, first, first_side)
        there = _inward_lines(cube, second, second_side)
        there = there.flip(-1) if is_reversed else there
        across.append((here[..., 0, :] - there[..., 0, :]).abs())
        beside.append(torch.cat([here.diff(dim=-2), there.diff(dim=-2)], -2).abs().mean(-2))
    step, usual = torch.stack(across, -3), torch.stack(beside, -3)  # [*, 12, c, s]
    jump = step.mean((-2, -1))
    ratio = _ratio(jump, usual.mean((-2, -1)), _rounding(cube).amax(-1, keepdim=True))
    return jump, ratio, step - usual


def _inward_lines(cube: Tensor, face: str, side: str) -> Tensor:
    """The three outermost lines of pixels of a face, outermost first, (*, C, 3, S).

    They are resampled to lie on great circles perpendicular to the edge, which in the plane of the
    face converge. Along the pixel columns themselves a smooth image has a kink at the edge.
    """
    image = cube.select(-4, FACE_NAMES.index(face))
    if side in ("left", "right"):
        image = image.mT
    lines = image[..., :3, :] if side in ("left", "top") else image[..., -3:, :].flip(-2)
    count = lines.shape[-1]
    inset = (torch.arange(3, dtype=cube.dtype, device=cube.device)[:, None] + 0.5) / count
    along = 2 * axis_coordinates(count, dtype=cube.dtype, device=cube.device) - 1
    position = ((along * (1 - inset) + 1) * count - 1) / 2  # [3, s]
    lower = position.floor().long().clamp(0, count - 2)
    before = lines.gather(-1, lower.expand(lines.shape))
    after = lines.gather(-1, (lower + 1).expand(lines.shape))
    return torch.lerp(before, after, (position - lower).expand(lines.shape))


def _rounding(x: Tensor) -> Tensor:
    """Differences below this are rounding errors of images (*, C, H, W)."""
    return 16 * torch.finfo(x.dtype).eps * x.abs().amax((-3, -2, -1))


def _ratio(jump: Tensor, beside: Tensor, rounding: Tensor) -> Tensor:
    """``jump / beside``; 1 where neither exceeds the rounding error."""
    return torch.where((jump <= rounding) & (beside <= rounding), 1.0, jump / beside)
