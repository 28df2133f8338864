"""Contract suites and synthetic files, to test formats and models of your own.

The suites need pytest. A subclass is a test of its own::

    from atlas_wsi.testing import BackendTests


    class TestMyFormat(BackendTests):
        open_file = open_my_format

        @pytest.fixture
        def path(self, tmp_path): ...
"""

from __future__ import annotations

from atlas_wsi.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
