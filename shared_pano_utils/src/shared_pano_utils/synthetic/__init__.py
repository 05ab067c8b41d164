"""Procedural rooms, corridors and outdoor scenes with exact depth, normals and labels."""

from shared_pano_utils.synthetic.elements import Pose, SceneObject
from shared_pano_utils.synthetic.labels import CATEGORY_IDS, COLORS
from shared_pano_utils.synthetic.paths import removal_pair
from shared_pano_utils.synthetic.render import Render
from shared_pano_utils.synthetic.scene import STYLES, Scene

__all__ = [
    "CATEGORY_IDS",
    "COLORS",
    "STYLES",
    "Pose",
    "Render",
    "Scene",
    "SceneObject",
    "removal_pair",
]
