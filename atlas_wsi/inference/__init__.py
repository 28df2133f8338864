"""Uses of the streamed encoder: predict, embed, attention maps."""
