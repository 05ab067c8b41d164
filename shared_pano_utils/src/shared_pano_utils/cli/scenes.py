"""The verbs of `pano-convert` that need no input: procedural scenes and the benchmark."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared_pano_utils.cli.arrays import save_array
from shared_pano_utils.imageio import write_image, write_json, write_png16
from shared_pano_utils.synthetic import Pose, Render, Scene, removal_pair

_SKY_CODE = 65535  # instance -1 in a 16-bit PNG
_SCENE_FILE = "scene.json"


def synth(args: argparse.Namespace) -> None:
    """Render scenes `<kind>_<seed>/` with colour, depth, normals, labels and the scene itself.

    `scene.json` is written last: a folder that holds it is complete and is skipped.
    """
    size = (args.size[0], args.size[1])
    for seed in range(args.seed, args.seed + args.n):
        folder = Path(args.output) / f"{args.kind}_{seed:06d}"
        if (folder / _SCENE_FILE).exists() and not args.overwrite:
            continue
        scene = Scene.random(seed, args.kind)
        _write_scene(folder, scene, seed, size, args)
        write_json(folder / _SCENE_FILE, scene.to_json())


def bench(args: argparse.Namespace) -> None:
    """Measure, print the tables, and write all numbers to `--json`."""
    from shared_pano_utils import bench as benchmark

    report = benchmark.run(compare=args.compare, quick=args.quick)
    if args.json:
        write_json(args.json, report)
    sys.stdout.write(benchmark.format_report(report))


# ---- files of one scene -------------------------------------------------------------------------


def _write_scene(
    folder: Path, scene: Scene, seed: int, size: tuple[int, int], args: argparse.Namespace
) -> None:
    if args.sequence:
        poses = scene.forward_path(n_frames=args.sequence, seed=seed)
        for index, pose in enumerate(poses):
            render = scene.render(pose, size, shadows=args.shadows, outputs=("rgb", "depth"))
            _write_render(folder, f"_{index:03d}", render)
    else:
        poses = [scene.random_pose(seed)]
        outputs = ("rgb", "depth", "normals_cam", "instance", "semantic", "visible")
        render = scene.render(poses[0], size, shadows=args.shadows, outputs=outputs)
        _write_render(folder, "", render)
        write_json(folder / "visible.json", render.visible)
    write_json(folder / "poses.json", [{"R": p.R.tolist(), "t": p.t.tolist()} for p in poses])
    if args.pairs:
        _write_pair(folder, scene, poses[0], size)


def _write_render(folder: Path, suffix: str, render: Render) -> None:
    """Write colour as PNG, metres and camera-frame normals as NPY, ids as 16-bit PNG."""
    write_image(folder / f"rgb{suffix}.png", _to_uint8(render.rgb), gpano=True)
    save_array(folder / f"depth{suffix}.npy", _hwc(render.depth)[..., 0])
    if render.normals_cam is not None:
        save_array(folder / f"normals{suffix}.npy", _hwc(render.normals_cam).astype(np.float16))
    for name in ("instance", "semantic"):
        labels = getattr(render, name)
        if labels is not None:
            codes = torch.where(labels < 0, _SKY_CODE, labels.int()).numpy().astype(np.uint16)
            write_png16(folder / f"{name}{suffix}.png", codes, gpano=True)


def _write_pair(folder: Path, scene: Scene, pose: Pose, size: tuple[int, int]) -> None:
    """Write the view with and without its largest object, and the masks of that object."""
    instance = _required(scene.render(pose, size, outputs=("instance",)).instance)
    pixels = torch.bincount(instance.clamp(min=0).flatten())
    pixels[0] = 0
    if not pixels.any():
        sys.stderr.write(f"pano-convert synth: {folder}: no object in sight, no pair written\n")
        return
    pair = removal_pair(scene, int(pixels.argmax()), pose, size)
    for name in ("rgb_with", "rgb_without"):
        write_image(folder / f"{name}.png", _to_uint8(pair[name]), gpano=True)
    for name in ("mask", "amodal_mask"):
        mask = pair[name].reshape(size).numpy().astype(np.uint8) * np.uint8(255)
        write_image(folder / f"{name}.png", mask, gpano=True)
    write_json(folder / "pair.json", {"instance": int(pixels.argmax()), "bfov": pair["bfov"]})


def _required(image: Tensor | None) -> Tensor:
    if image is None:
        raise ValueError("the renderer left out an image that was asked for")
    return image


def _hwc(image: Tensor | None) -> np.ndarray:
    return _required(image).permute(1, 2, 0).contiguous().cpu().numpy()


def _to_uint8(rgb: Tensor | None) -> np.ndarray:
    return np.rint(_hwc(rgb).clip(0, 1) * 255).astype(np.uint8)
