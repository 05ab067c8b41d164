"""Closed vocabularies of the scenes: colour words, categories, semantic ids."""

COLORS = {
    "red": (0.72, 0.16, 0.14),
    "orange": (0.85, 0.47, 0.15),
    "yellow": (0.88, 0.76, 0.26),
    "green": (0.26, 0.50, 0.26),
    "blue": (0.18, 0.33, 0.62),
    "purple": (0.45, 0.27, 0.55),
    "pink": (0.87, 0.58, 0.65),
    "brown": (0.45, 0.29, 0.18),
    "black": (0.11, 0.11, 0.12),
    "white": (0.90, 0.89, 0.87),
    "gray": (0.52, 0.53, 0.54),
    "beige": (0.82, 0.74, 0.61),
}
COLOR_JITTER = 0.05

STRUCTURE_LABELS = ("sky", "wall", "floor", "ceiling", "ground")
CATEGORIES = (
    "table",
    "chair",
    "stool",
    "sofa",
    "bed",
    "shelf",
    "cabinet",
    "lamp",
    "plant",
    "tv",
    "picture",
    "window",
    "door",
    "rug",
    "ball",
    "crate",
    "barrel",
    "house",
    "tree",
    "car",
    "lamp post",
    "bench",
    "fence",
    "rock",
    "bin",
    "sign",
)
CATEGORY_IDS = {name: k for k, name in enumerate((*STRUCTURE_LABELS, *CATEGORIES))}
