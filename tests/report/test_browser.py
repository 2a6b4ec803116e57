"""The page in a real browser: it fits, experiments are found, figures are saved."""

import shutil
import xml.etree.ElementTree as ElementTree

import pytest

from autollm_jax.gym.splits import Split
from tests.report.test_page import write
from tests.small import small

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium here", allow_module_level=True)


@pytest.fixture(scope="module")
def address(small_split, tmp_path_factory):
    """A report on three experiments of two tasks."""
    folder = tmp_path_factory.mktemp("browser")
    others = (small("dear", "mid", tokens=4e8, task="grpo"), small("wide", "mid", tokens=8e8))
    write(Split(small_split.training, (*small_split.held_out[:1], *others)), folder)
    return (folder / "report" / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, address, width=1300):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    page.goto(address)
    return page


@pytest.mark.parametrize("width", [1300, 800, 400])
def test_nothing_is_wider_than_the_window(browser, address, width):
    page = opened(browser, address, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('figure svg').length") > 3


def test_experiments_are_found_by_their_words(browser, address):
    page = opened(browser, address)
    rows = page.locator("tr.experiment")
    assert rows.count() == 3
    shown = page.locator("tr.experiment:visible")
    page.fill("#find", "DEAR grpo")
    assert shown.count() == 1 and "dear" in shown.inner_text()
    assert page.inner_text("#found") == "1 of 3 experiments"
    page.fill("#find", "nothing of the kind")
    assert shown.count() == 0
    page.fill("#find", "")
    assert shown.count() == 3 and page.inner_text("#found") == ""


def test_every_figure_can_be_saved(browser, address, tmp_path):
    page = opened(browser, address)
    figures = page.locator("figure:has(svg)")
    assert page.locator("figure:has(svg) > button").count() == figures.count() > 3
    first = figures.first
    first.hover()
    with page.expect_download() as download:
        first.locator("button").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.suffix == ".svg"
    assert ElementTree.parse(saved).getroot().tag.endswith("}svg")
