"""Archives of slides on one machine or a cluster."""
