"""Time generation, editing and training beside what they replace: `python benchmarks/run.py`."""

import sys
from pathlib import Path

from shared_pano_utils.commands import Parser, run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, measure, print the tables."""
    parser = Parser(prog="benchmarks/run.py", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="miniature networks, few runs each, no memory: 30 s"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to this file")
    parser.add_argument("-v", "--verbose", action="store_true", help="tracebacks of errors")
    args = parser.parse_args(argv)

    def command() -> int:
        from dit360 import bench
        from shared_pano_utils.imageio import write_json

        report = bench.run(quick=args.quick)
        if args.json is not None:
            write_json(args.json, report)
        sys.stdout.write(bench.format_report(report))
        return 0

    return run_cli(command, verbose=args.verbose, out_of_memory="use --quick")


if __name__ == "__main__":
    sys.exit(main())
