"""The encoder over an image that does not fit in memory, exact to rounding."""
