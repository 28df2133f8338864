"""Preloaded by what starts workers: those that replace dead ones start in no time."""

from atlas_wsi.batch.clusters import share_imports

share_imports()
