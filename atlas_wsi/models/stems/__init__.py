"""Networks that turn pixels into tokens."""
