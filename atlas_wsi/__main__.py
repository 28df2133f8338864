"""`python -m atlas_wsi`, which launchers such as torchrun call."""

from atlas_wsi.cli.app import main

main()
