"""`python -m shared_pano_utils.cli` is `pano-convert`."""

from shared_pano_utils.cli import main

main()
