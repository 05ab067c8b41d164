"""Transforms between equirectangular panoramas (ERP), cubemaps and perspective views.

Convention: RDF frame, degrees, faces F R B L U D, ``R = Ry(yaw) Rx(pitch) Rz(roll)`` is the
orientation of the output camera in the input frame. Tensors are channel first, NumPy arrays channel
last; the result is of the same kind, dtype and leading axes as the input.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ._arrays import Array, Layout, to_torch
from ._maps import locate_in_erp
from ._pipeline import (
    Options,
    erp_from_cube,
    erp_from_erp,
    erp_from_views,
    views_from_erp,
)
from ._yaw import fourier_shifted, shifted, yaw_columns
from .geometry import CENTER, FACE_AXES, Registration, face_tangent, lonlat_to_pixel
from .resample import (
    Backend,
    Mode,
    choose_backend,
    erp_map,
    in_memory_order,
    sample,
    work_dtype,
)
from .views import Angle, Cameras, Fov, Matrix, Pose, Views, face_cameras, view_cameras


def erp_to_cubemap(
    erp: Array,
    face_size: int | Literal["match"] | None = None,
    *,
    fov: float = 90.0,
    yaw: Angle = 0.0,
    pitch: Angle = 0.0,
    roll: Angle = 0.0,
    R: Matrix | None = None,
    mode: Mode = "bilinear",
    antialias: bool | int = False,
    layout: Layout | None = None,
    reg: Registration = CENTER,
    backend: Backend = "auto",
) -> Array:
    """Cut a panorama into the six cube faces F R B L U D.

    Args:
        erp: (*, C, H, W).
        face_size: side S in pixels; None is W // 4, "match" the side with the panorama's
            resolution at the face centre.
        fov: degrees covered by a face; above 90 faces overlap.
        yaw: degrees to the right, orientation of the F face.
        pitch: degrees up.
        roll: degrees clockwise.
        R: 3x3 orientation instead of the angles, or (*, 3, 3) for one per image.
        mode: "bilinear", "nearest" or "bicubic".
        antialias: average n x n samples per output pixel; True chooses n.
        layout: "chw" or "hwc" overrides the channel position.
        reg: pixel registration of the ERP and of the faces.
        backend: "auto", "torch" or "cv2".

    Returns:
        (*, 6, C, S, S).
    """
    image, restore = to_torch(erp, layout, name="erp")
    side = _face_size(face_size, image.shape[-1])
    cameras = face_cameras(side, fov, Pose(yaw, pitch, roll, R))
    out = views_from_erp(image, cameras, Options(mode, antialias, reg, backend))
    return restore(in_memory_order(out, image))


def cubemap_to_erp(
    cube: Array,
    size: tuple[int, int] | None = None,
    *,
    fov: float = 90.0,
    blend: Literal["none", "feather"] = "none",
    yaw: Angle = 0.0,
    pitch: Angle = 0.0,
    roll: Angle = 0.0,
    R: Matrix | None = None,
    mode: Mode = "bilinear",
    antialias: bool | int = False,
    layout: Layout | None = None,
    reg: Registration = CENTER,
    backend: Backend = "auto",
) -> Array:
    """Assemble a panorama from the six cube faces F R B L U D.

    Args:
        cube: (*, 6, C, S, S).
        size: (H, W); None is (2S, 4S).
        fov: degrees covered by a face; above 90 the central 90 degrees are used, or all by `blend`.
        blend: "feather" averages overlapping faces with weights that vanish at their borders.
        yaw: degrees to the right, orientation of the panorama in the frame of the cube.
        pitch: degrees up.
        roll: degrees clockwise.
        R: 3x3 orientation instead of the angles, or (*, 3, 3) for one per image.
        mode: "bilinear", "nearest" or "bicubic".
        antialias: average n x n samples per output pixel; True chooses n.
        layout: "chw" or "hwc" overrides the channel position.
        reg: pixel registration of the ERP and of the faces.
        backend: "auto", "torch" or "cv2".

    Returns:
        (*, C, H, W).
    """
    faces, restore = to_torch(cube, layout, cube=True, name="cube")
    side = faces.shape[-1]
    size = (2 * side, 4 * side) if size is None else _checked_size(size)
    pose = Pose(yaw, pitch, roll, R)
    options = Options(mode, antialias, reg, backend)
    if blend == "none":
        out = erp_from_cube(faces, size, face_tangent(fov), pose, options)
    elif blend == "feather":
        out = _feathered_cube(faces, size, fov, pose, options)
    else:
        raise ValueError(f"blend is {blend!r}; use 'none' or 'feather'")
    return restore(in_memory_order(out, faces))


def _feathered_cube(
    faces: Tensor, size: tuple[int, int], fov: float, pose: Pose, options: Options
) -> Tensor:
    if options.antialias:
        raise ValueError("antialias and blend='feather' cannot be combined; drop one of them")
    cameras = face_cameras(faces.shape[-1], fov, Pose())

    def rotation() -> Tensor:  # of the faces, in the frame of the panorama
        R = pose.single()
        return R.mT @ FACE_AXES.to(R).mT

    key = pose.key and ("feathered", fov, pose.key)
    cameras = Cameras(cameras.size, cameras.K, rotation, key)
    return erp_from_views(faces, cameras, size, "feather", 0.0, options)[0]


def erp_to_perspective(
    erp: Array,
    *,
    size: tuple[int, int],
    fov: Fov = 90.0,
    K: Matrix | None = None,
    yaw: Angle = 0.0,
    pitch: Angle = 0.0,
    roll: Angle = 0.0,
    R: Matrix | None = None,
    views: Views | None = None,
    mode: Mode = "bilinear",
    antialias: bool | int = False,
    layout: Layout | None = None,
    reg: Registration = CENTER,
    backend: Backend = "auto",
) -> Array:
    """Look into a panorama with a pinhole camera, or with several.

    Args:
        erp: (*, C, H, W).
        size: (h, w) of a view in pixels.
        fov: horizontal degrees with square pixels, or (horizontal, vertical).
        K: 3x3 intrinsics in pixels instead of `fov`; pixel (0, 0) covers [0, 1) x [0, 1).
        yaw: degrees to the right; a sequence gives several views.
        pitch: degrees up.
        roll: degrees clockwise.
        R: 3x3 orientation instead of the angles, or (*, 3, 3) for one per image.
        views: several views instead of angles and `fov`.
        mode: "bilinear", "nearest" or "bicubic".
        antialias: average n x n samples per output pixel; True chooses n.
        layout: "chw" or "hwc" overrides the channel position.
        reg: pixel registration of the ERP and of the view.
        backend: "auto", "torch" or "cv2".

    Returns:
        (*, C, h, w); (*, V, C, h, w) with `views` or sequences of angles.
    """
    image, restore = to_torch(erp, layout, name="erp")
    pose = Pose(yaw, pitch, roll, R)
    cameras = view_cameras(_checked_size(size), fov, K, pose, views)
    out = views_from_erp(image, cameras, Options(mode, antialias, reg, backend))
    if views is None and not pose.is_sequence:
        out = out.squeeze(-4)
    return restore(in_memory_order(out, image))


def perspective_to_erp(
    pers: Array,
    size: tuple[int, int],
    *,
    fov: Fov = 90.0,
    K: Matrix | None = None,
    yaw: Angle = 0.0,
    pitch: Angle = 0.0,
    roll: Angle = 0.0,
    R: Matrix | None = None,
    views: Views | None = None,
    blend: Literal["none", "feather", "mean", "nearest"] = "feather",
    fill: float = 0.0,
    mode: Mode = "bilinear",
    layout: Layout | None = None,
    reg: Registration = CENTER,
    backend: Backend = "auto",
) -> tuple[Array, Array]:
    """Paint one or several pinhole views into a panorama.

    Args:
        pers: (*, C, h, w); (*, V, C, h, w) with `views` or sequences of angles.
        size: (H, W) of the panorama.
        fov: horizontal degrees with square pixels, or (horizontal, vertical).
        K: 3x3 intrinsics in pixels instead of `fov`.
        yaw: degrees to the right; a sequence means several views.
        pitch: degrees up.
        roll: degrees clockwise.
        R: 3x3 orientation instead of the angles, or (*, 3, 3) for one per image.
        views: several views instead of angles and `fov`.
        blend: how several views merge: "feather" and "mean" average, "nearest" takes the view that
            sees the pixel closest to its centre, "none" the first that sees it.
        fill: value where no view looks.
        mode: "bilinear", "nearest" or "bicubic".
        layout: "chw" or "hwc" overrides the channel position.
        reg: pixel registration of the ERP and of the view.
        backend: "auto", "torch" or "cv2".

    Returns:
        The panorama (*, C, H, W), and (*, 1, H, W): True where the view looks, or for several views
        the sum of their weights (the chosen weight for "nearest" and "none"), 0 = uncovered.
    """
    if blend not in ("none", "feather", "mean", "nearest"):
        raise ValueError(f"blend is {blend!r}; use 'none', 'feather', 'mean' or 'nearest'")
    options = Options(mode, False, reg, backend)
    image, restore = to_torch(pers, layout, name="pers")
    pose = Pose(yaw, pitch, roll, R)
    cameras = view_cameras((image.shape[-2], image.shape[-1]), fov, K, pose, views)
    is_several = views is not None or pose.is_sequence
    images = image if is_several else image.unsqueeze(-4)
    if images.dim() < 4 or images.shape[-4] != len(cameras.K):
        raise ValueError(
            f"pers has shape {tuple(pers.shape)}, but {len(cameras.K)} views are given; "
            "expected (*, V, C, h, w) with one image per view"
        )
    out, weight = erp_from_views(
        images, cameras, _checked_size(size), blend if is_several else "none", fill, options
    )
    weight = weight if is_several else weight > 0
    return restore(in_memory_order(out, image)), restore(weight)


def rotate_erp(
    erp: Array,
    yaw: Angle = 0.0,
    pitch: Angle = 0.0,
    roll: Angle = 0.0,
    *,
    R: Matrix | None = None,
    mode: Mode | Literal["fourier"] = "bilinear",
    vectors: bool = False,
    reg: Registration = CENTER,
    backend: Backend = "auto",
) -> Array:
    """Turn the camera of a panorama: the result looks along `R` in the old frame.

    A yaw by whole columns is an exact roll, any other yaw a one-dimensional interpolation.

    Args:
        erp: (*, C, H, W).
        yaw: degrees to the right (content moves left).
        pitch: degrees up.
        roll: degrees clockwise.
        R: 3x3 orientation instead of the angles, or (*, 3, 3) for one per image.
        mode: "bilinear", "nearest" or "bicubic"; "fourier" shifts by phase, for yaw only, and
            keeps the spectrum of noise.
        vectors: the three channels are vectors in the camera frame (normals), turned as well.
        reg: pixel registration of the ERP.
        backend: "auto", "torch" or "cv2".

    Returns:
        (*, C, H, W).
    """
    image, restore = to_torch(erp, name="erp")
    pose = Pose(yaw, pitch, roll, R)
    if vectors and (image.shape[-3] != 3 or not image.is_floating_point()):
        raise ValueError(
            f"erp has shape {tuple(erp.shape)} and dtype {erp.dtype}; vectors=True needs three "
            "floating-point channels"
        )
    rotation = pose.single()
    shift = yaw_columns(rotation, image.shape[-1], reg)
    if mode == "fourier":
        if shift is None:
            raise ValueError("mode='fourier' can only turn by yaw, without gradient to the angle")
        out = fourier_shifted(image, shift)
    elif shift is not None:
        choose_backend(image, (2, 2), mode, "torch")
        out = shifted(image, shift, mode)
    else:
        out = erp_from_erp(image, pose, Options(mode, False, reg, backend))
    if vectors:
        matrix = rotation.squeeze(-3).to(image.device, work_dtype(image.dtype))
        out = torch.einsum("...ji,...jhw->...ihw", matrix, out.to(matrix.dtype)).to(image.dtype)
    return restore(in_memory_order(out, image))


def sample_erp(
    erp: Array, where: Array, *, mode: Mode = "bilinear", reg: Registration = CENTER
) -> Array:
    """Look up a panorama along given directions; gradients flow to both arguments.

    Args:
        erp: (*, C, H, W).
        where: (*, ..., 3) rays of any length, or (*, ..., 2) longitude and latitude in degrees;
            leading axes as those of `erp`.
        mode: "bilinear", "nearest" or "bicubic".
        reg: pixel registration of the ERP.

    Returns:
        (*, C, ...), or (*, ..., C) for NumPy.
    """
    image, restore = to_torch(erp, name="erp")
    points = torch.as_tensor(where, device=image.device)
    lead = image.shape[:-3]
    if points.shape[-1] not in (2, 3) or points.shape[: len(lead)] != lead:
        raise ValueError(
            f"where has shape {tuple(where.shape)}; expected {(*lead, '...')} followed by 3 for "
            f"rays or 2 for longitude and latitude, for erp of shape {tuple(erp.shape)}"
        )
    if not points.is_floating_point() or points.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"where has dtype {points.dtype}; use float32 or float64")
    if not bool(points.isfinite().all()):
        raise ValueError("where holds NaN or infinity; leave these directions out")
    choose_backend(image, (2, 2), mode, "torch")
    batch = image.reshape(-1, *image.shape[-3:])
    shape = points.shape[len(lead) : -1]
    size = (image.shape[-2], image.shape[-1])
    maps = []
    for item in points.reshape(len(batch), 1, 1, -1, points.shape[-1]):
        if points.shape[-1] == 3:
            x, y, z = item.unbind(-1)
            column, row = locate_in_erp((x, y, z), size, reg.erp)
        else:
            lon, lat = item.unbind(-1)
            wrapped = torch.stack([(lon + 180) % 360 - 180, lat], -1)
            column, row = lonlat_to_pixel(wrapped, size, reg.erp).unbind(-1)
        maps.append(erp_map(column, row, size, reg.erp, mode, "torch", half_columns=True))
    out = sample(batch, maps, "torch")[:, 0, :, 0]  # [n, c, points]
    # One row of points, so that the layout rules of an image apply.
    flat = restore(out.reshape(*lead, -1, 1, out.shape[-1]))
    if isinstance(flat, Tensor):
        return flat.reshape(*lead, *([] if erp.ndim == 2 else [out.shape[1]]), *shape)
    return flat.reshape(*lead, *shape, *([] if erp.ndim == 2 else [out.shape[1]]))


def _face_size(face_size: int | str | None, width: int) -> int:
    if face_size is None:
        face_size = width // 4
    elif face_size == "match":
        face_size = 2 * math.ceil(math.ceil(width / math.pi) / 2)
    if not isinstance(face_size, int) or face_size < 2:
        raise ValueError(
            f"face_size is {face_size!r}; use a number of pixels >= 2, 'match', or None for W // 4"
        )
    return face_size


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2 or min(size) < 2:
        raise ValueError(f"size is {size}; expected (height, width), each at least 2 pixels")
    return int(size[0]), int(size[1])
