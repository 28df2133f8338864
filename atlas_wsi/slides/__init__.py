"""From a file to a lazy pyramid of pixels."""
