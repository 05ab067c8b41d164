"""Equirectangular, cubemap and perspective transforms, spherical geometry, procedural scenes.

Public names are loaded on first use, so that a command's ``--help`` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shared_pano_utils.depth import convert_depth as convert_depth
    from shared_pano_utils.depth import depth_to_normals as depth_to_normals
    from shared_pano_utils.depth import depth_to_points as depth_to_points
    from shared_pano_utils.geometry import Registration as Registration
    from shared_pano_utils.geometry import rays as rays
    from shared_pano_utils.geometry import rotation_matrix as rotation_matrix
    from shared_pano_utils.geometry import sphere_weights as sphere_weights
    from shared_pano_utils.layouts import convert_cube_layout as convert_cube_layout
    from shared_pano_utils.padding import pad_cubemap as pad_cubemap
    from shared_pano_utils.padding import pad_erp as pad_erp
    from shared_pano_utils.transforms import cubemap_to_erp as cubemap_to_erp
    from shared_pano_utils.transforms import erp_to_cubemap as erp_to_cubemap
    from shared_pano_utils.transforms import erp_to_perspective as erp_to_perspective
    from shared_pano_utils.transforms import perspective_to_erp as perspective_to_erp
    from shared_pano_utils.transforms import rotate_erp as rotate_erp
    from shared_pano_utils.transforms import sample_erp as sample_erp
    from shared_pano_utils.views import Views as Views

    e2c, c2e, e2p = erp_to_cubemap, cubemap_to_erp, erp_to_perspective
    p2e, e2e = perspective_to_erp, rotate_erp

_HOME = {
    "convert_depth": "depth",
    "depth_to_normals": "depth",
    "depth_to_points": "depth",
    "Registration": "geometry",
    "rays": "geometry",
    "rotation_matrix": "geometry",
    "sphere_weights": "geometry",
    "convert_cube_layout": "layouts",
    "pad_cubemap": "padding",
    "pad_erp": "padding",
    "cubemap_to_erp": "transforms",
    "erp_to_cubemap": "transforms",
    "erp_to_perspective": "transforms",
    "perspective_to_erp": "transforms",
    "rotate_erp": "transforms",
    "sample_erp": "transforms",
    "Views": "views",
}
# The verbs that users of py360convert and pytorch360convert type.
_ALIAS = {
    "e2c": "erp_to_cubemap",
    "c2e": "cubemap_to_erp",
    "e2p": "erp_to_perspective",
    "p2e": "perspective_to_erp",
    "e2e": "rotate_erp",
}

__all__ = ["__version__", *sorted(_HOME), *sorted(_ALIAS)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    target = _ALIAS.get(name, name)
    if target not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[target]}"), target)
