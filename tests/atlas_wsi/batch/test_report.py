"""The pages about an archive, in a real browser, from files."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import sync_playwright

from atlas_wsi.batch.journal import Journal, Row
from atlas_wsi.slides.synthetic import make_svs

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def archive(tmp_path_factory, make_archive):
    from typer.testing import CliRunner

    from atlas_wsi.cli.app import app

    folder = tmp_path_factory.mktemp("archive")
    slides, out = folder / "slides", folder / "out"
    slides.mkdir()
    for k, name in enumerate(['one & "two"', "naïve 🔬", "plain", "zz 10", "zz 9"]):
        make_svs(slides / f"{name}.svs", shape=(1200, 1600), mpp=0.5, tissue=0.4 + 0.1 * k, seed=k)
    (slides / "broken.svs").write_bytes(b"II*\0no directory")
    make_archive(slides, out)
    hostile = Row(
        name="hostile",
        source="/<script>document.title='taken'</script>",
        state="failed",
        error="UnreadableSlideError",
        reason="<img src=x onerror=\"document.title='taken'\"> & more",
    )
    Journal(out).write_row(hostile)
    done = CliRunner().invoke(app, ["report", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def page(archive):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert browser, "these tests need Chromium: CONTRIBUTING.md names the package"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1200, "height": 900})
        wrong = []
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on("request", lambda r: None if r.url.startswith("file:") else wrong.append(r.url))
        page.goto((archive / "report" / "index.html").as_uri())
        yield page
        opened.close()
    assert wrong == []


def names(page):
    return page.locator(".card:visible b").all_inner_texts()


def test_the_gallery_is_sorted_and_searched(page, archive):
    everything = ["naïve 🔬", "one & _two_", "plain", "zz 9", "zz 10"]
    assert sorted(names(page)) == sorted(everything)
    assert names(page)[-2:] == ["zz 9", "zz 10"]  # numbers by their value
    rows = Journal(archive).read_rows()
    done = [row for row in rows.values() if row.state == "done"]
    page.select_option("#order", "share green:down")
    shares = {r.name: r.areas["green"] / sum(r.areas.values()) for r in done}
    shown = [shares[name] for name in names(page)]
    assert shown == sorted(shares.values(), reverse=True)
    page.select_option("#order", "seconds:down")
    assert names(page)[0] == max(done, key=lambda row: row.wall_s).name
    page.fill("#search", "ZZ svs")
    assert set(names(page)) == {"zz 9", "zz 10"}
    assert page.inner_text("#found") == "2 of 5 slides"


def test_what_comes_from_outside_is_shown_as_text(page):
    failures = page.locator("table").inner_text()
    assert "<script>document.title='taken'</script>" in failures
    assert "<img src=x onerror=" in failures
    assert "broken" in failures
    assert page.title() == "out - atlas-wsi"


def test_histograms_count_every_slide(page):
    counts = page.locator(".chart >> nth=0").locator("rect title").all_text_contents()
    assert sum(int(text.split(": ")[1].split()[0]) for text in counts) == 5


def test_a_slide_is_zoomed_and_its_classes_fade(page):
    page.click("text=naïve")
    page.wait_for_function("viewer.world?.getItemCount() === 2")
    page.wait_for_function("viewer.world.getItemAt(0).getFullyLoaded()")
    size = page.evaluate("(() => { const s = viewer.source; return [s.width, s.height]; })()")
    assert size == [1600, 1200]
    page.evaluate("viewer.viewport.zoomTo(3, null, true)")
    page.wait_for_function("viewer.world.getItemAt(0).getFullyLoaded()")
    page.locator("#opacity").fill("20")
    assert page.evaluate("viewer.world.getItemAt(1).getOpacity()") == 0.2
    shown = page.locator("#viewer").screenshot()
    page.locator("#opacity").fill("95")
    page.wait_for_function("viewer.world.getItemAt(1).getOpacity() === 0.95")
    page.evaluate(
        "new Promise(done => { viewer.addOnceHandler('update-viewport', done); viewer.forceRedraw(); })"
    )
    assert page.locator("#viewer").screenshot() != shown
    assert page.locator("table >> nth=0").inner_text().count("%") == 3
    page.click("text=All slides")
    assert len(names(page)) == 5


def test_a_second_report_keeps_the_pictures_and_replaces_the_pages(archive):
    from atlas_wsi.batch.report import write_report

    small = archive / "report/slides/plain/small.jpg"
    before = small.stat()
    journal = Journal(archive)
    journal.write_row(Row(name="later", source="/later.svs", state="failed", reason="came later"))
    page = write_report(archive)
    assert small.stat().st_ino == before.st_ino
    assert "came later" in page.read_text()
    assert not [p.name for p in archive.glob(".report*")]


def test_a_slide_that_was_moved_is_drawn_by_its_tissue(tmp_path, archive):
    from atlas_wsi.batch.report import write_report

    out = tmp_path / "out"
    shutil.copytree(archive, out)
    shutil.rmtree(out / "report")
    journal = Journal(out)
    source = journal.read_rows()["plain"].source
    shutil.move(source, source + ".moved")
    try:
        write_report(out)
    finally:
        shutil.move(source + ".moved", source)
    assert (out / "report/slides/plain/small.jpg").stat().st_size > 0
