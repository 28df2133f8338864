"""What the user set on napari's preferences page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Defaults of the panels."""

    device: str = "auto"
    """Where models run."""
    memory_gb: float = 1.0
    """Memory for the encoder."""
    refresh_hz: float = 5.0
    """How often a growing heatmap is drawn."""
    opacity: float = 0.5
    """Of heatmap layers."""


def settings() -> Settings:
    """Read the settings."""
    from napari.settings import get_plugin_settings

    try:
        page: Settings = get_plugin_settings("atlas-wsi").predict
    except (KeyError, AttributeError):  # the plugin is not registered, as in a test of one widget
        return Settings()
    return page
