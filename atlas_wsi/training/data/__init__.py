"""Labeled data: tiles, areas of slides, whole slides; augmentation and mosaics."""
