"""Atlas-wsi in napari."""
