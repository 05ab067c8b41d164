"""Where inference writes: a folder per panorama, or the original's tree per checkpoint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pager.cli.inputs import Item

if TYPE_CHECKING:
    import numpy as np

    from pager.pipeline import Prediction


# Names, or their beginnings, that every run has below its own folder.
ALIKE = ("checkpoint-", "original", "EMA", "unet", "diffusion_pytorch_model")


class Output(Protocol):
    """Where the results of a run go."""

    def is_done(self, item: Item) -> bool:
        """Whether everything asked for is there already."""
        ...

    def write(
        self, item: Item, rgb: "np.ndarray", prediction: "Prediction", with_picture: bool
    ) -> None:
        """Write one item; `with_picture` asks for an example image where those are sparse."""
        ...


class InputOutput:
    """``<results>/<id>/`` with every format."""

    def __init__(self, args: argparse.Namespace, checkpoints: dict[str, str]) -> None:
        self.args = args
        self.points = None if args.points == "none" else args.points
        names = ("max_depth", "face_size", "normals_frame", "rope")
        options = {name: getattr(args, name) for name in names}
        self.made_with = {
            modality: {"checkpoint": path, "revision": args.revision, **options}
            for modality, path in checkpoints.items()
        }

    def is_done(self, item: Item) -> bool:
        """See `Output`."""
        from pager.export import is_complete

        return is_complete(
            self.args.results_path / item.id,
            source=item.source,
            made_with=self.made_with,
            html=self.args.html,
            points=self.points,
        )

    def write(
        self,
        item: Item,
        rgb: "np.ndarray",
        prediction: "Prediction",
        with_picture: bool,  # noqa: ARG002 (every item has its preview)
    ) -> None:
        """See `Output`."""
        from pager.export import write_prediction

        write_prediction(
            self.args.results_path / item.id,
            rgb,
            prediction,
            source=item.source,
            made_with=self.made_with,
            points=self.points,
            html=self.args.html,
        )


def result_folders(checkpoints: dict[str, str]) -> dict[str, str]:
    """Name of the results of each modality: the last part of its checkpoint.

    Folders of trainings end alike ("checkpoint-last", "checkpoint-best/EMA"), so they keep the names
    above them, up to that of the run, in front.
    """
    names = {modality: _result_name(Path(path)) for modality, path in checkpoints.items()}
    if len(set(names.values())) < len(names):
        names = {modality: f"{name}_{modality}" for modality, name in names.items()}
    return names


def _result_name(checkpoint: Path) -> str:
    if not checkpoint.exists():  # a hub id
        return checkpoint.name
    parts = checkpoint.resolve().parts
    first = len(parts) - 1
    while first > 1 and parts[first].startswith(ALIKE):
        first -= 1
    return "_".join(parts[first:])


class DatasetOutput:
    """The original's tree: ``<results>/<checkpoint>/<dataset>/{eval,example_images}/<id>``."""

    def __init__(self, args: argparse.Namespace, checkpoints: dict[str, str]) -> None:
        self.args = args
        self.folders = {
            modality: args.results_path / name / args.dataset
            for modality, name in result_folders(checkpoints).items()
        }

    def is_done(self, item: Item) -> bool:
        """See `Output`."""
        files = [folder / "eval" / f"{item.id}.npz" for folder in self.folders.values()]
        return self.args.generate_eval and all(path.is_file() for path in files)

    def write(
        self, item: Item, rgb: "np.ndarray", prediction: "Prediction", with_picture: bool
    ) -> None:
        """See `Output`."""
        import numpy as np

        from pager import export
        from shared_pano_utils.imageio import write_image

        for modality, folder in self.folders.items():
            values = getattr(prediction, modality)
            if with_picture:
                preview = getattr(export, f"{modality}_preview")(values)
                picture = preview if self.args.pred_only else np.concatenate([rgb, preview])
                path = folder / "example_images" / f"{item.id}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, picture, gpano=self.args.pred_only)  # a mosaic is no panorama
            if self.args.generate_eval:
                path = folder / "eval" / f"{item.id}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                export.write_npz(path, values)
