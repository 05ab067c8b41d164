"""Time this package beside its peers: `python benchmarks/run.py --quick --json bench.json`."""

import argparse
import sys

from shared_pano_utils import bench
from shared_pano_utils.imageio import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, few runs, about 30 s")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    args = parser.parse_args()
    report = bench.run(quick=args.quick)
    if args.json:
        write_json(args.json, report)
    sys.stdout.write(bench.format_report(report))


if __name__ == "__main__":
    main()
