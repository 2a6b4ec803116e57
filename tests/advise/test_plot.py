"""The page of an advice: every size has its colour in the legend, and nothing overlaps."""

import html
import re
import shutil

import numpy as np
import pytest

from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.axes import Axis, axes_of
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.plot import MOST_NAMED, page

from .conftest import TARGET

BATCHES = (64, 96, 128, 192, 256, 320, 384, 448, 512)


def diverse(rows):
    """Runs with a category, a close list of batch sizes, a range, a mixture, and some failures."""
    random = np.random.default_rng(0)
    made = []
    for number, row in enumerate([*rows, *rows]):
        web, code = random.uniform(0, 0.5, 2)
        made.append(
            {
                **row, "batch_size": BATCHES[number % len(BATCHES)],
                "optimizer": ("adamw", "muon", "a_name_that_is_far_too_long")[number % 3],
                "weight_decay": random.uniform(0, 0.3), "clip": 10 ** random.uniform(-3, 2),
                "mix/web": web, "mix/code": code, "mix/books": 1 - web - code,
                "loss": "nan" if number % 20 == 7 else row["loss"] + 0.01 * random.normal(),
            }
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def advisor(rows):
    advisor = Advisor.from_runs(diverse(rows), target=TARGET, decider=Panels())
    return advisor.tell(advisor.ask().config, 2.7)


@pytest.fixture(scope="module")
def text(advisor):
    return page(advisor, advisor.ask())


def test_the_legend_names_every_size_with_the_colour_of_its_points(advisor, text):
    (legend,) = re.findall(r'<ul class="legend">(.*?)</ul>', text)
    for experiment in advisor.question.evidence:
        name = re.escape(html.escape(experiment.name))
        (colour,) = re.findall(rf'color:(#\w+)">●</b> {name}: 30 runs', legend)
        assert len(re.findall(f"fill: {colour}", text)) > 20
    assert "an expensive run, by its number" in legend and "the proposal" in legend


def test_every_kind_of_hyperparameter_is_drawn(advisor, text):
    axes = axes_of(advisor.question.setting.space, advisor.question.evidence[0], 99)
    assert {axis.name for axis in axes} == {
        "learning_rate", "batch_size", "optimizer", "weight_decay", "clip", "mix.web", "mix.code",
        "mix.books",
    }  # fmt: skip
    assert axes[0].name == "learning_rate"  # which the loss depends on
    assert text.count("<svg") == 12


def test_of_very_many_sizes_some_are_named_and_the_rest_counted(rows):
    many = [
        {**row, "parameters": 1e6 * 1.2**n, "tokens": 2e7} for n in range(40) for row in rows[:4]
    ]
    advisor = Advisor.from_runs(many, target={"parameters": 1e10, "tokens": 2e7}, decider=Panels())
    text = page(advisor, advisor.ask())
    assert text.count(">●</b>") == MOST_NAMED and "and 30 sizes between these" in text


def test_ticks_keep_both_ends_and_their_distance():
    marks = tuple((float(n), str(n)) for n in BATCHES)
    axis = Axis("batch_size", lambda config: config["batch_size"], (64.0, 512.0), True, marks)
    labels = [label for _, label in axis.ticks()]
    assert labels[0] == "64" and labels[-1] == "512" and "448" not in labels


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


OVERLAPS = """
() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('[id^="xtick"] text, [id^="ytick"] text')];
  const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
  const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  return boxes.flatMap(([name, box], i) =>
    boxes.slice(i + 1).filter(([_, other]) => touch(box, other)).map(([o, _]) => name + ' on ' + o));
})
"""  # noqa: E501


@pytest.mark.parametrize("width", [1300, 800, 400])
def test_no_tick_overlaps_another_and_nothing_is_wider_than_the_window(
    browser, text, width, tmp_path
):
    path = tmp_path / "out.html"
    path.write_text(text)
    shown = browser.new_page(viewport={"width": width, "height": 900})
    shown.goto(path.as_uri())
    assert shown.evaluate("document.querySelectorAll('[id^=xtick] text').length") > 24
    assert shown.evaluate(OVERLAPS) == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    for box in shown.evaluate(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().right)"
    ):
        assert box <= width
