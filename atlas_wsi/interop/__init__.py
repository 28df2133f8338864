"""Results for other programs, and what is in their files."""
