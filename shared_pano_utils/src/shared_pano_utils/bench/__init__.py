"""Speed and accuracy of this package beside the other installed panorama libraries.

All libraries are measured in one process on the same data, so that ratios mean something on a
machine that is shared or slow. `run` gives the report, `format_report` its tables as text.
"""

from shared_pano_utils.bench.report import format_report as format_report
from shared_pano_utils.bench.runner import run as run
