"""Arguments of `pano-convert`."""

import argparse
from typing import NoReturn, TypeAlias

_FILES = "PNG, JPEG, WebP, TIFF, 16-bit grey PNG, NPY or NPZ"
_MODES = ("bilinear", "nearest", "bicubic")
_CUBE_FORMATS = ("dice", "dice_genex", "horizon", "faces", "stack")


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, as all errors of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


_Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; `verb` and `module` of its result say which function runs."""
    parser = _Parser(
        prog="pano-convert",
        description="Convert, inspect and make 360-degree panoramas (equirectangular, ERP).",
        epilog=f"Files: {_FILES}. IN may be several files or quoted globs; OUT is then a folder. "
        "Angles are degrees: yaw right, pitch up, roll clockwise.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_cube_verbs(verbs)
    _add_view_verbs(verbs)
    _add_geometry_verbs(verbs)
    _add_scene_verbs(verbs)
    return parser


def _add_verb(
    verbs: _Verbs,
    name: str,
    summary: str,
    module: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=summary)
    verb.set_defaults(module=module)
    return verb


def _add_files(verb: argparse.ArgumentParser, out: str = "OUT") -> None:
    verb.add_argument("inputs", nargs="+", metavar="IN", help=f"files or globs: {_FILES}")
    verb.add_argument("output", metavar=out, help="file, or folder for several inputs")


def _add_angles(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--yaw", type=float, default=0.0, help="degrees to the right")
    verb.add_argument("--pitch", type=float, default=0.0, help="degrees up")
    verb.add_argument("--roll", type=float, default=0.0, help="degrees clockwise")


def _add_sampling(verb: argparse.ArgumentParser, *, antialias: bool = True) -> None:
    verb.add_argument("--mode", choices=_MODES, default="bilinear", help="interpolation")
    if antialias:
        verb.add_argument("--antialias", action="store_true", help="average when reducing")


def _add_size(verb: argparse.ArgumentParser, default: tuple[int, int] | None, what: str) -> None:
    verb.add_argument(
        "--size", type=_positive, nargs=2, metavar=("H", "W"), default=default, help=what
    )


def _add_fov(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--fov",
        type=float,
        nargs="+",
        metavar="F",
        default=[90.0],
        help="horizontal field of view in degrees, or horizontal and vertical",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _face_size(text: str) -> int | str:
    return text if text == "match" else _positive(text)


def _add_cube_verbs(verbs: _Verbs) -> None:
    order = (
        "order and flips of the six slots, a preset or text such as 'U F R B L D' or "
        "'F R.lr B.lr L U.ud D'; files of faces are then numbered 0 to 5"
    )
    e2c = _add_verb(verbs, "e2c", "Panorama to cubemap.", "commands")
    _add_files(e2c)
    e2c.add_argument("--face-size", type=_face_size, help="pixels, or 'match'; default width / 4")
    e2c.add_argument("--format", choices=_CUBE_FORMATS, default="dice", help="default dice")
    e2c.add_argument("--face-order", "--layout", help=order)
    _add_angles(e2c)
    _add_sampling(e2c)

    c2e = _add_verb(verbs, "c2e", "Cubemap to panorama.", "commands")
    _add_files(c2e)
    _add_size(c2e, None, "of the panorama; default 2 x 4 face sizes")
    c2e.add_argument(
        "--format", choices=_CUBE_FORMATS, default="dice", help="default dice; faces: IN_F.png ..."
    )
    c2e.add_argument("--face-order", "--layout", help=order)
    _add_angles(c2e)
    _add_sampling(c2e)


def _add_view_verbs(verbs: _Verbs) -> None:
    e2p = _add_verb(verbs, "e2p", "Panorama to perspective view.", "commands")
    _add_files(e2p)
    _add_size(e2p, (512, 512), "of the view")
    _add_fov(e2p)
    _add_angles(e2p)
    _add_sampling(e2p)

    p2e = _add_verb(verbs, "p2e", "Perspective view to panorama.", "commands")
    _add_files(p2e)
    _add_size(p2e, None, "of the panorama; default that of --onto, else 512 1024")
    p2e.add_argument("--onto", metavar="BASE", help="panorama into which the view is pasted")
    p2e.add_argument("--fill", type=float, default=0.0, help="value of pixels without data")
    _add_fov(p2e)
    _add_angles(p2e)
    _add_sampling(p2e, antialias=False)

    rotate = _add_verb(verbs, "rotate", "Rotate a panorama.", "commands")
    _add_files(rotate)
    _add_angles(rotate)
    rotate.add_argument("--mode", choices=(*_MODES, "fourier"), default="bilinear")

    views = _add_verb(verbs, "views", "Panorama to a set of perspective views.", "commands")
    _add_files(views, out="DIR")
    views.add_argument("--kind", choices=("icosahedron", "horizon", "cube"), default="horizon")
    views.add_argument("--n", type=_positive, default=8, help="views of --kind horizon")
    views.add_argument("--fov", type=float, default=90.0, help="degrees")
    _add_size(views, (512, 512), "of a view")
    _add_sampling(views)


def _add_geometry_verbs(verbs: _Verbs) -> None:
    cloud = _add_verb(verbs, "depth2cloud", "Panorama and depth to a point cloud.", "commands")
    cloud.add_argument("rgb", metavar="RGB", help="panorama")
    cloud.add_argument("depth", metavar="DEPTH", help="metres (NPY, NPZ), or 16-bit PNG")
    cloud.add_argument("output", metavar="OUT.ply")
    cloud.add_argument(
        "--scale", type=float, help="metres per unit of DEPTH; default 1, 16-bit PNG 0.001"
    )
    cloud.add_argument("--max-depth", type=float, help="leave out points farther than this, metres")
    cloud.add_argument("--stride", type=_positive, default=1, help="take every n-th row and column")

    seam = _add_verb(verbs, "seam", "Print seam metrics of panoramas as JSON.", "commands")
    seam.add_argument("inputs", nargs="+", metavar="IN", help=f"files or globs: {_FILES}")


def _add_scene_verbs(verbs: _Verbs) -> None:
    synth = _add_verb(verbs, "synth", "Render procedural scenes with ground truth.", "scenes")
    synth.add_argument("output", metavar="DIR")
    synth.add_argument("--kind", choices=("room", "corridor", "outdoor"), default="room")
    synth.add_argument("--n", type=_positive, default=1, help="number of scenes")
    synth.add_argument("--seed", type=int, default=0, help="of the first scene")
    _add_size(synth, (512, 1024), "of the panoramas")
    synth.add_argument(
        "--sequence", type=_positive, metavar="N", help="frames of a walk, per scene"
    )
    synth.add_argument("--pairs", action="store_true", help="add one object-removal pair per scene")
    synth.add_argument("--shadows", action="store_true", help="hard shadows")
    synth.add_argument("--overwrite", action="store_true", help="render scenes that exist again")

    bench = _add_verb(verbs, "bench", "Measure speed and accuracy.", "scenes")
    bench.add_argument("--compare", action="store_true", help="also the other installed libraries")
    bench.add_argument("--quick", action="store_true", help="one size, few runs, about 30 s")
    bench.add_argument("--json", metavar="FILE", help="write all numbers to this file")
