"""What a prediction gives, and the files it is written to."""
