"""The verbs of `pano-convert` that turn files into files."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shared_pano_utils import geometry, transforms
from shared_pano_utils.cli.arrays import load_array, save_array
from shared_pano_utils.cli.batch import convert_files, expand_inputs, run_all
from shared_pano_utils.depth import depth_to_points
from shared_pano_utils.imageio import write_json
from shared_pano_utils.layouts import convert_cube_layout
from shared_pano_utils.metrics import seam_error
from shared_pano_utils.pointcloud import write_ply
from shared_pano_utils.views import Views

_DEFAULT_ERP_SIZE = (512, 1024)
_PNG16_METRES_PER_UNIT = 0.001


def _angles(args: argparse.Namespace) -> dict[str, Any]:
    return {"yaw": args.yaw, "pitch": args.pitch, "roll": args.roll}


def _fov(args: argparse.Namespace) -> float | tuple[float, float]:
    if len(args.fov) > 2:
        raise ValueError(f"--fov has {len(args.fov)} numbers; give one, or horizontal and vertical")
    return args.fov[0] if len(args.fov) == 1 else (args.fov[0], args.fov[1])


# ---- cubemaps -----------------------------------------------------------------------------------


def e2c(args: argparse.Namespace) -> None:
    """Cut panoramas into cube faces."""

    def convert(source: Path, target: Path) -> None:
        cube = transforms.erp_to_cubemap(
            load_array(source),
            args.face_size,
            **_angles(args),
            mode=args.mode,
            antialias=args.antialias,
        )
        _save_cube(target, np.asarray(cube), args)

    convert_files(args, convert)


def c2e(args: argparse.Namespace) -> None:
    """Assemble panoramas from cube faces."""

    def convert(source: Path, target: Path) -> None:
        erp = transforms.cubemap_to_erp(
            _load_cube(source, args),
            args.size and tuple(args.size),
            **_angles(args),
            mode=args.mode,
            antialias=args.antialias,
        )
        save_array(target, np.asarray(erp), is_erp=True)

    if args.format == "faces":
        args.inputs = _face_set_names(args)
    convert_files(args, convert)


def _layout(args: argparse.Namespace) -> str:
    container = "list" if args.format == "faces" else args.format
    return f"{args.face_order}:{container}" if args.face_order else container


def _save_cube(path: Path, cube: np.ndarray, args: argparse.Namespace) -> None:
    arranged = convert_cube_layout(cube, "stack", _layout(args))
    if isinstance(arranged, list):
        for name, face in zip(_slot_names(args), arranged, strict=True):
            save_array(_face_path(path, name), np.asarray(face))
    else:
        save_array(path, np.asarray(arranged))


def _load_cube(path: Path, args: argparse.Namespace) -> np.ndarray:
    if args.format == "faces":
        cube = [load_array(_face_path(path, name)) for name in _slot_names(args)]
    else:
        cube = load_array(path)
    return np.asarray(convert_cube_layout(cube, _layout(args), "stack"))


def _slot_names(args: argparse.Namespace) -> str:
    return "012345" if args.face_order else geometry.FACE_NAMES


def _face_path(path: Path, slot: str) -> Path:
    return path.with_name(f"{path.stem}_{slot}{path.suffix}")


def _face_set_names(args: argparse.Namespace) -> list[str]:
    """Names of face sets: `a.png` stands for `a_F.png` ... `a_D.png`, also through a glob."""
    first = _slot_names(args)[0]
    names = []
    for pattern in map(Path, args.inputs):
        faces = expand_inputs([str(_face_path(pattern, first))])
        names += [str(path.with_name(path.stem[:-2] + path.suffix)) for path in faces]
    return names


# ---- views --------------------------------------------------------------------------------------


def e2p(args: argparse.Namespace) -> None:
    """Render one perspective view of every panorama."""

    def convert(source: Path, target: Path) -> None:
        view = transforms.erp_to_perspective(
            load_array(source),
            size=tuple(args.size),
            fov=_fov(args),
            **_angles(args),
            mode=args.mode,
            antialias=args.antialias,
        )
        save_array(target, np.asarray(view))

    convert_files(args, convert)


def p2e(args: argparse.Namespace) -> None:
    """Paint perspective views into a panorama, an empty one or `--onto`."""
    base = load_array(Path(args.onto)) if args.onto else None
    size = (
        tuple(args.size) if args.size else (_DEFAULT_ERP_SIZE if base is None else base.shape[:2])
    )
    if base is not None and base.shape[:2] != size:
        raise ValueError(
            f"--size is {size[0]} {size[1]} but {args.onto} has {base.shape[0]} rows and "
            f"{base.shape[1]} columns; leave --size out"
        )

    def convert(source: Path, target: Path) -> None:
        view = load_array(source)
        if base is not None and (view.dtype, view.shape[2:]) != (base.dtype, base.shape[2:]):
            raise ValueError(
                f"{source} has {view.shape[2:]} channels of {view.dtype}, {args.onto} "
                f"{base.shape[2:]} of {base.dtype}; they must be the same"
            )
        erp, seen = transforms.perspective_to_erp(
            view, size, fov=_fov(args), **_angles(args), fill=args.fill, mode=args.mode
        )
        if base is not None:
            mask = np.asarray(seen).reshape(*size, *[1] * (base.ndim - 2))
            erp = np.where(mask, np.asarray(erp), base)
        save_array(target, np.asarray(erp), is_erp=True)

    convert_files(args, convert)


def rotate(args: argparse.Namespace) -> None:
    """Rotate panoramas."""

    def convert(source: Path, target: Path) -> None:
        erp = transforms.rotate_erp(load_array(source), **_angles(args), mode=args.mode)
        save_array(target, np.asarray(erp), is_erp=True)

    convert_files(args, convert)


def views(args: argparse.Namespace) -> None:
    """Render a set of views of every panorama, with their angles in `<name>_views.json`."""
    cameras = {
        "icosahedron": lambda: Views.icosahedron(fov=args.fov),
        "horizon": lambda: Views.horizon(args.n, fov=args.fov),
        "cube": lambda: Views.cube(args.fov),
    }[args.kind]()
    names = ("yaw", "pitch", "roll", "fov")
    table = [
        dict(zip(names, (float(value) for value in camera), strict=True))
        for camera in zip(*cameras, strict=True)
    ]

    def convert(source: Path, target: Path) -> None:
        images = transforms.erp_to_perspective(
            load_array(source),
            size=tuple(args.size),
            views=cameras,
            mode=args.mode,
            antialias=args.antialias,
        )
        for index, image in enumerate(np.asarray(images)):
            save_array(target.with_name(f"{target.stem}_{index:02d}{target.suffix}"), image)
        write_json(target.with_name(f"{target.stem}_views.json"), table)

    args.output = args.output.rstrip("/") + "/"
    convert_files(args, convert)


# ---- geometry -----------------------------------------------------------------------------------


def depth2cloud(args: argparse.Namespace) -> None:
    """Write the coloured points of a panorama with Euclidean depth."""
    target = Path(args.output)
    if target.suffix.lower() != ".ply":
        raise ValueError(f"{target}: point clouds are written as PLY; use the suffix .ply")
    rgb, depth = load_array(Path(args.rgb)), load_array(Path(args.depth))
    if rgb.dtype != np.uint8 or rgb.ndim != 3:
        raise ValueError(f"{args.rgb}: {rgb.shape} {rgb.dtype}; expected an 8-bit colour image")
    depth = depth.squeeze()
    if depth.ndim != 2:
        raise ValueError(f"{args.depth}: has shape {depth.shape}; expected one depth per pixel")
    if depth.shape != rgb.shape[:2]:
        raise ValueError(
            f"{args.depth} has {depth.shape[0]} x {depth.shape[1]} pixels, {args.rgb} "
            f"{rgb.shape[0]} x {rgb.shape[1]}; they must be of one size"
        )
    default_scale = _PNG16_METRES_PER_UNIT if depth.dtype == np.uint16 else 1.0
    scale = default_scale if args.scale is None else args.scale
    metres = depth.astype(np.float32) * np.float32(scale)
    keep = np.zeros(metres.shape, bool)
    keep[:: args.stride, :: args.stride] = True
    limit = math.inf if args.max_depth is None else args.max_depth
    keep &= np.isfinite(metres) & (metres > 0) & (metres <= limit)
    if not keep.any():
        raise ValueError(f"{args.depth}: no pixel has a depth above 0 and up to {limit} m")
    points = np.asarray(depth_to_points(np.where(keep, metres, 1)))
    write_ply(target, points[keep], rgb[keep])


def seam(args: argparse.Namespace) -> None:
    """Print one JSON object per panorama: values in [0, 1], see `metrics.seam_error`."""

    def report(path: Path) -> None:
        erp = load_array(path)
        full_scale = np.iinfo(erp.dtype).max if erp.dtype.kind in "iu" else 1
        result = seam_error(erp.astype(np.float32) / np.float32(full_scale))
        values = {
            name: np.round(np.asarray(value, float), 6).tolist() for name, value in result.items()
        }
        sys.stdout.write(json.dumps({"file": str(path), **values}) + "\n")

    inputs = expand_inputs(args.inputs)
    run_all(args.verb, inputs, [lambda path=path: report(path) for path in inputs])
