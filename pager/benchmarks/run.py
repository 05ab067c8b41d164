"""Time the cube networks beside the stock ones: `python benchmarks/run.py --json bench.json`."""

import argparse
import sys

from pager.cli.common import run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="smaller faces, one run each, no memory: about 40 s"
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto measures both"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compiled networks too: minutes of compiling"
    )
    args = parser.parse_args(argv)

    def command() -> int:
        from pager import bench
        from shared_pano_utils.imageio import write_json

        report = bench.run(quick=args.quick, device=args.device, with_compile=args.compile)
        if args.json:
            write_json(args.json, report)
        sys.stdout.write(bench.format_report(report))
        return 0

    return run_cli(command)


if __name__ == "__main__":
    sys.exit(main())
