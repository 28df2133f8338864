"""Contract suites and synthetic files for tests of formats and models."""
