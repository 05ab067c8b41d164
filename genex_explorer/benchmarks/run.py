"""Time training and exploration beside stock diffusers: `python benchmarks/run.py`."""

import argparse
import sys

from genex_explorer.cli.common import run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="miniature networks, one run each, no memory: 20 s"
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    args = parser.parse_args(argv)

    def command() -> int:
        from genex_explorer import bench
        from shared_pano_utils.imageio import write_json

        report = bench.run(quick=args.quick)
        if args.json:
            write_json(args.json, report)
        sys.stdout.write(bench.format_report(report))
        return 0

    return run_cli(command)


if __name__ == "__main__":
    sys.exit(main())
