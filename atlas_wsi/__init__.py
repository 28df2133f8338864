"""Gigapixel slides and scenes analyzed with global context.

The public names are those of `__init__.pyi`. They are resolved when they are first used, so that
importing the package stays fast.
"""

from __future__ import annotations

from atlas_wsi.lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__)
__all__ += ["__version__"]
