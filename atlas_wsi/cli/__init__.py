"""The command line: one verb a file, joined in `atlas_wsi.cli.app`."""
