"""A jsonl file that grows while its images are made, so that an interrupted run goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit360.data.rows import read_jsonl
from shared_pano_utils.imageio import atomic_path

Record = Mapping[str, Any]


class Journal:
    """Records of finished images: kept beside the final file, and moved there at the end.

    A record names its files, relative to the folder of the jsonl file, and holds the options that
    made them, so that changed options make them again.
    """

    def __init__(
        self, path: Path, *, files: Sequence[str] = ("image", "mask"), overwrite: bool = False
    ) -> None:
        """Read what earlier runs have finished.

        Args:
            path: final jsonl file; its folder is made.
            files: keys whose values are files; the first tells records apart.
            overwrite: begin anew.
        """
        self.path = path
        self._files = tuple(files)
        self._part = path.with_name(f"{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._part.unlink(missing_ok=True)
        known = [] if overwrite else [path, self._part]
        self._finished: dict[str, Record] = {
            values[files[0]]: values
            for file in known
            if file.is_file()
            for _, values, _ in read_jsonl(file)
            if not isinstance(values, str) and files[0] in values  # a line may be torn by a crash
        }

    def is_finished(self, record: Record) -> bool:
        """Whether its image was made with the same options and is still there."""
        return self._finished.get(record[self._files[0]]) == record and self._has_files(record)

    def add(self, record: Record) -> None:
        """Note a finished image."""
        with self._part.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def close(self, records: Sequence[Record], *, merge: bool = False) -> int:
        """Write the final file.

        Args:
            records: of this run.
            merge: keep those of earlier runs whose images are others, and still there.

        Returns:
            How many records of earlier runs were kept.
        """
        rows = {record[self._files[0]]: record for record in records}
        earlier = {name: r for name, r in self._finished.items() if merge and self._has_files(r)}
        with atomic_path(self.path) as temporary:
            lines = map(_line, (earlier | rows).values())  # in the order of their first run
            temporary.write_text("".join(lines), encoding="utf-8")
        self._part.unlink(missing_ok=True)
        return len(earlier.keys() - rows.keys())

    def _has_files(self, record: Record) -> bool:
        return all(
            key in record and (self.path.parent / record[key]).is_file() for key in self._files
        )


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
