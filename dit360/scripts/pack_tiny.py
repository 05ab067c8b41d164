"""Pack the trained tiny base and its LoRA for shipping, in half precision.

python scripts/pack_tiny.py --base out/tiny/base --lora out/tiny/lora --output assets/tiny
"""

import argparse
import sys
from pathlib import Path

from shared_pano_utils.commands import run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="pipeline of train_tiny_base.py")
    parser.add_argument("--lora", type=Path, required=True, help="directory with the LoRA")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    return run_cli(lambda: pack(args.base, args.lora, args.output))


def pack(base: Path, lora: Path, output: Path) -> int:
    """Write base and LoRA to `output`, without the paths of this machine."""
    import json
    import shutil

    import torch
    from diffusers import FluxPipeline
    from safetensors import safe_open
    from safetensors.torch import save_file

    FluxPipeline.from_pretrained(base, dtype=torch.float16).save_pretrained(output / "base")
    base_files = output / "base"
    for config in [base_files / "model_index.json", *base_files.glob("*/config.json")]:
        values = json.loads(config.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (output / "lora").mkdir(exist_ok=True)
    shutil.copy(lora / "adapter_config.json", output / "lora" / "adapter_config.json")
    with safe_open(lora / "adapter_model.safetensors", "pt") as file:
        state = {name: file.get_tensor(name).half() for name in file.keys()}  # noqa: SIM118
        save_file(state, output / "lora" / "adapter_model.safetensors", file.metadata())
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
