"""Pack a trained tiny pipeline for shipping, in half precision.

python scripts/pack_tiny.py --work out/tiny --output assets/tiny
"""

import argparse
import sys
from pathlib import Path

from genex_explorer.cli.common import run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of scripts/train_tiny.sh")
    parser.add_argument("--run", default="explorer", help="its run to ship")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    return run_cli(lambda: pack(args.work / args.run, args.output))


def pack(run: Path, output: Path) -> int:
    """Write the final pipeline of a run to `output`, without the paths of this machine."""
    import json

    import torch

    from genex_explorer.loading import load_pipeline

    load_pipeline(str(run), dtype=torch.float16).stock().save_pretrained(output)
    for config in output.glob("*/config.json"):
        values = json.loads(config.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
