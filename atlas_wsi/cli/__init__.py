"""The command line: one verb per file, joined in `atlas_wsi.cli.app`."""
