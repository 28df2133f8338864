"""Gigapixel slides and scenes analysed with global context."""

__version__ = "0.1.0"
