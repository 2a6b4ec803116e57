"""The page holds what it should, for any number of methods and any space."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from autollm_jax.baselines import BASELINES
from autollm_jax.errors import UserError
from autollm_jax.evaluation.cost import Spending
from autollm_jax.evaluation.runner import Terms, evaluate, play_method
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import Split
from autollm_jax.gym.stress import Stress, distort
from autollm_jax.report.details import show_measured
from autollm_jax.report.page import write_report
from tests.small import BATCHES, RATES, small


def agent(games):
    """Play the default, something invalid and an unmeasured cell; say markup while at it."""
    for game in games:
        game.episode.exec_config(game.episode.setting.default)
        game.episode.exec_config(None, "nonsense")
        if not game.episode.done:
            game.episode.exec_config({"learning_rate": 0.003, "batch_size": 64})
        game.episode.finish()
    return ["<think>a < b & <script>alert(1)</script></think><exec>{}</exec> \udc80" for _ in games]


def write(split, folder, methods=("agent", "random"), budget=3, **fields):
    players = {m: agent if m == "agent" else play_method(BASELINES[m]) for m in methods}
    path = folder / "evaluation" / "results.parquet"
    evaluate(players, split, Terms(budget, (0, 1)), path, tables={}, progress=False)
    summary = write_report(path, split.held_out, folder / "report", **fields)
    return summary, (folder / "report" / "index.html").read_text()


@pytest.fixture(scope="module")
def plain(small_split, tmp_path_factory):
    """A report without anything special: its folder, its summary and its page."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, *write(small_split, folder)


@pytest.mark.parametrize(
    "methods", [("agent",), ("random",), ("agent", "random"), tuple(BASELINES) + ("agent",)]
)
def test_any_number_of_methods(small_split, tmp_path, methods):
    summary, page = write(small_split, tmp_path, methods)
    assert set(summary["regret"]) == set(methods)
    assert all(m.replace("_", " ") in page for m in methods)


def test_one_experiment(small_split, tmp_path):
    split = Split(small_split.training, small_split.held_out[:1])
    summary, page = write(split, tmp_path)
    cell = summary["regret"]["agent"]["all"]["1"]
    assert (cell["low"], cell["high"]) == (0.0, 1.0)
    assert "its interval is the whole range" in page


def test_a_budget_of_one(small_split, tmp_path):
    summary, _ = write(small_split, tmp_path, ("random",), budget=1)
    assert list(summary["regret"]["random"]["all"]) == ["1"]


def test_summary_file_is_the_summary(plain):
    folder, summary, _ = plain
    assert json.loads((folder / "report" / "summary.json").read_text()) == summary


def test_the_picture_shows_a_landscape_beside_the_best_methods(plain, tmp_path):
    folder, *_ = plain
    drawn = (folder / "report" / "picture.svg").read_text()
    assert "agent configures a held-out run" in drawn and "random" in drawn
    assert "learning rate" in drawn and "batch size" in drawn
    space = Space((Dimension("mixture", "simplex", ("web", "code")),))
    mixtures = [{"mixture": {"web": share, "code": 1 - share}} for share in (0.2, 0.4, 0.6, 0.8)]
    one = Split((), (small("mixed", "mid", space=space, configurations=mixtures),))
    write(one, tmp_path, ("random",))
    assert not (tmp_path / "report" / "picture.svg").exists()


def test_transcripts_are_escaped(plain):
    _, _, page = plain
    assert "&lt;script&gt;alert(1)" in page and page.count("<script") == 1  # its own


def test_the_page_needs_nothing_from_elsewhere(plain):
    _, _, page = plain
    for reference in ('src="http', "@import", "<link", 'href="http', "url(http"):
        assert reference not in page


def test_the_same_results_give_the_same_page(plain, small_split, tmp_path):
    assert write(small_split, tmp_path)[1] == plain[2]


def test_matched_trials_and_provenance_are_shown(small_split, tmp_path):
    _, page = write(small_split, tmp_path, provenance={"versions": {"jax": "1.2.3"}})
    assert '<span class="tag">matched</span>' in page and "versions.jax" in page


def test_tasks_are_reported_apart_and_together(small_split, tmp_path):
    other = small("dear", "mid", tokens=4e8, task="grpo")
    split = Split(small_split.training, (*small_split.held_out, other))
    summary, page = write(split, tmp_path)
    assert set(summary["regret"]["random"]) == {"all", "grpo", "pretraining"}
    assert "all tasks" in page


def test_results_that_cannot_be_read_are_named(small_split, tmp_path):
    path = tmp_path / "results.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="results.parquet"):
        write_report(path, small_split.held_out, tmp_path / "report")


def test_results_without_a_trial_are_refused(plain, small_split, tmp_path):
    path = tmp_path / "results.parquet"
    pq.write_table(pq.read_table(plain[0] / "evaluation" / path.name).slice(0, 0), path)
    with pytest.raises(UserError, match="holds no trial"):
        write_report(path, small_split.held_out, tmp_path / "report")


@pytest.mark.parametrize("kind", ["mixture", "one dimension", "layers"])
def test_other_spaces_are_drawn(kind, tmp_path):
    if kind == "mixture":
        space = Space((Dimension("mix", "simplex", ("a", "b", "c")),))
        weights = np.random.default_rng(0).dirichlet(np.ones(3), 12).tolist()
        cells = [{"mix": dict(zip("abc", w, strict=True))} for w in weights]
    elif kind == "layers":
        space = Space(tuple(Dimension(f"ratio.{n}", "ordinal", (2, 4)) for n in (1, 2, 3)))
        cells = [
            {"ratio.1": a, "ratio.2": b, "ratio.3": c}
            for a in (2, 4)
            for b in (2, 4)
            for c in (2, 4)
        ]
    else:
        space = Space((Dimension("rate", "log-ordinal", (0.1, 0.2, 0.4)),))
        cells = [{"rate": r} for r in (0.1, 0.2, 0.4)]
    held_out = small("dear", "mid", tokens=4e8, space=space, configurations=cells)
    cheap = small("cheap", "low", space=space, configurations=cells)
    _, page = write(Split((cheap,), (held_out,)), tmp_path, ("random", "gaussian_process"))
    assert page.count("<svg") == 4  # curve, legend, landscape, panels


def test_a_maximised_objective_is_shown_in_its_own_units(small_split, tmp_path):
    rates = [0.1 + 0.05 * n for n in range(10)] + [np.nan]
    fields = {"outcomes": rates, "minimize": False, "objective_metric": "success_rate"}
    held_out = small("dear", "mid", tokens=4e8, **fields)
    _, page = write(Split(small_split.training, (held_out,)), tmp_path)
    assert "success rate, higher is better" in page and '<td class="n">0.5500</td>' in page


def repeated(name, level, spread=0.0, **fields):
    """Make an experiment of which every configuration was run twice."""
    cells = [{"learning_rate": r, "batch_size": b} for r in RATES for b in BATCHES]
    outcomes = [1.0 + 0.1 * n for n in range(12)]
    return small(
        name,
        level,
        configurations=2 * cells,
        outcomes=outcomes + [y + spread for y in outcomes],
        status=["ok"] * 24,
        **fields,
    )


def test_the_noise_floor_is_in_units_of_regret(tmp_path):
    held_out = repeated("dear", "mid", spread=0.11, tokens=4e8)
    deviation = 0.11 / np.sqrt(2)
    assert held_out.outcomes.noise == pytest.approx(deviation)
    summary, page = write(Split((small("cheap", "low"),), (held_out,)), tmp_path)
    floor = summary["noise_floor"]["test/pretraining/dear"]
    assert floor == pytest.approx(deviation / 0.55)  # from the optimum to the median
    assert "noise floor 0.14 (1 of 1 experiments)" in page


def test_without_repeats_the_noise_floor_is_unknown(small_split, tmp_path):
    summary, page = write(small_split, tmp_path)
    assert summary["noise_floor"] == dict.fromkeys(e.id for e in small_split.held_out)
    assert "the noise floor is not known" in page and "noise floor 0" not in page


def test_a_difference_less_than_the_noise_floor_is_said_to_be(tmp_path):
    held_out = repeated("dear", "mid", spread=3.0, tokens=4e8)
    _, page = write(Split((small("cheap", "low"),), (held_out,)), tmp_path)
    assert "less than the noise floor" in page


def test_a_noise_floor_of_some_experiments_is_drawn_but_compared_with_nothing(tmp_path):
    held_out = (repeated("dear", "mid", spread=3.0, tokens=4e8), small("dearer", "mid", tokens=8e8))
    split = Split((small("cheap", "low"),), tuple(e for e in held_out))
    _, page = write(split, tmp_path)
    assert "(1 of 2 experiments)" in page and "less than the noise floor" not in page


def objectives(name, number, **fields):
    return [
        small(f"{name}_{n}", "mid", task="data_mixture", facts={"objective": f"o{n}"}, **fields)
        for n in range(number)
    ]


def test_of_many_experiments_only_the_median_ones_landscape_is_drawn(small_split, tmp_path):
    held_out = tuple(e for e in objectives("m", 5))
    _, page = write(Split(small_split.training, held_out), tmp_path)
    assert page.count('<div class="map" id=') == 1
    assert all(f"m_{n}" in page for n in range(5))


def test_each_task_has_an_episode_of_its_own(small_split, tmp_path):
    held_out = (*small_split.held_out, *(e for e in objectives("m", 2)))
    _, page = write(Split(small_split.training, held_out), tmp_path)
    assert page.count("One episode in full") == 2


def talks(games):
    """Play as `agent` does, with counted claims."""
    counts = {"n": 4, "true": 3, "numbers": 5, "unchecked": 1, "words": 10, "unread": 2}
    return [{"text": text, "claims": [counts] * 2} for text in agent(games)]


def proven(split, folder, spending=None):
    """Write a report on an agent that talks, with one stress."""
    paths = {}
    for stress in (Stress(), Stress("thin")):
        path = folder / f"evaluation{stress.label}" / "results.parquet"
        players = {"agent": talks, "random": play_method(BASELINES["random"])}
        evaluate(players, split, Terms(3, (0,), stress=stress), path, tables={}, progress=False)
        paths[stress.label] = path
    plain = paths.pop("")
    summary = write_report(
        plain, split.held_out, folder / "report", stress_paths=paths, spending=spending
    )
    return summary, (folder / "report" / "index.html").read_text()


def test_claims_and_validity_have_sections(small_split, tmp_path):
    summary, page = proven(small_split, tmp_path)
    assert summary["claims"]["agent"]["pretraining"]["true"] == 0.75
    assert summary["validity"]["agent"]["all"]["2"]["invalid"] == 1.0
    assert 'id="claims"' in page and "<b>75.0 %</b>" in page and 'id="validity"' in page


def test_stress_has_a_section_with_the_plain_results_first(small_split, tmp_path):
    summary, page = proven(small_split, tmp_path)
    assert summary["stress"]["thin_0.3"]["random"]["all"]["1"]["n"] == 2
    assert page.index("as it is") < page.index("thin 0.3")


def test_a_renamed_experiments_landscape_is_drawn_with_its_new_names(small_split, tmp_path):
    stress, path = Stress("rename"), tmp_path / "evaluation" / "results.parquet"
    players = {"random": play_method(BASELINES["random"])}
    evaluate(players, small_split, Terms(3, (0,), stress=stress), path, tables={}, progress=False)
    held_out = distort(small_split, stress).held_out
    write_report(path, held_out, tmp_path / "report")
    assert "x1" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("flops", [10.0, float("nan")])
def test_cost_has_a_section_in_flops_that_says_where_they_are_unknown(small_split, tmp_path, flops):
    everyone = (*small_split.training, *small_split.held_out)
    runs = {e.id: {(e.id,): flops} for e in everyone}
    spending = Spending(5.0, 1.0, ("agent",), runs, small_split.training)
    summary, page = proven(small_split, tmp_path, spending)
    group = summary["cost"]["groups"]["test/pretraining"]
    known = (20.0, 10.0) if flops == 10.0 else (None, None)
    assert (group["evidence"], group["run"]) == known
    assert 'id="cost"' in page and "hours" not in page
    assert ("No FLOPs per run are published for test/pretraining" in page) == (known[0] is None)
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary


def test_without_claims_stress_and_spending_there_are_no_such_sections(small_split, tmp_path):
    _, page = write(small_split, tmp_path)
    assert not any(f'id="{name}"' in page for name in ("claims", "stress", "cost"))


def test_what_could_be_known_stands_beside_the_methods(small_split, tmp_path):
    summary, page = write(small_split, tmp_path, predict=lambda e: e.outcomes.regrets_R)
    assert summary["ceiling"]["all"] == {"1": 0.0, "3": 0.0}
    assert "What could be known" in page
    _, page = write(small_split, tmp_path / "without")
    assert "What could be known" not in page


def continuous(name, level, space, number=40, **fields):
    """Make an experiment with `number` runs at random places of a space."""
    units_ND = np.random.default_rng(len(name)).random((number, space.width))
    cells = [space.from_unit(unit_D) for unit_D in units_ND]
    losses = [1 + float(((space.to_unit(cell) - 0.4) ** 2).sum()) for cell in cells]
    status = ["ok"] * number
    return small(
        name, level, space=space, configurations=cells, outcomes=losses, status=status, **fields
    )


def test_a_continuous_target_is_drawn_on_its_bounds_whatever_the_evidence_has(tmp_path):
    rate = Dimension("rate", "log-continuous", bounds=(1e-4, 1e-2))
    listed = Dimension("rate", "log-ordinal", (1e-4, 1e-3))
    decay = Dimension("decay", "continuous", bounds=(0.0, 0.3))
    mix = Dimension("mix", "simplex", ("web", "code"))
    cheap = continuous("cheap", "low", Space((listed, mix)))
    dear = continuous("dear", "mid", Space((rate, decay, mix)), tokens=4e8)
    summary, page = write(Split((cheap,), (dear,)), tmp_path, ("random", "default"))
    assert set(summary["regret"]) == {"random", "default"}
    for bound in ("1e-4", "1e-3", "1e-2", "0.15", "0.3"):
        assert f">{bound}</text>" in page
    assert "measured 40 runs of 40 configurations, no grid" in page and "decay 0." in page


def test_a_target_with_dimensions_that_the_evidence_lacks_is_reported(tmp_path):
    def space(**choices):
        return Space(tuple(Dimension(name, "ordinal", found) for name, found in choices.items()))

    low = space(embedding=(256, 512, 1024), layers=(2, 4))
    mid = space(embedding=(512, 2048), layers=(4, 8, 16), heads=(4, 8), mlp_ratio=(2, 4))
    cheap, dear = continuous("cheap", "low", low), continuous("dear", "mid", mid, tokens=4e8)
    _, page = write(Split((cheap,), (dear,)), tmp_path, ("random", "default"))
    distinct = len(dear.configurations)
    assert f"measured {distinct} of 24 cells" in page
    assert all(f">{name}</text>" in page for name in ("embedding", "layers", "heads", "mlp ratio"))


def test_what_is_measured_stands_in_the_table_and_beside_the_figure(small_split, tmp_path):
    _, page = write(small_split, tmp_path, ("random",))
    assert page.count("measured 11 of 12 cells") == page.count(">11 of 12 cells</td>") == 2
    rate = Dimension("learning_rate", "log-continuous", bounds=(1e-4, 1e-2))
    cells = [{"learning_rate": rate} for rate in (1e-3, 2e-3, 2e-3, 4e-3, 4e-3)]
    fields = {"configurations": cells, "seeds": [0, 0, 1, 0, 1]}
    dear = small("dear", "mid", tokens=4e8, space=Space((rate,)), **fields)
    _, page = write(Split((), (dear,)), tmp_path / "continuous", ("random",))
    said = "5 runs of 3 configurations, no grid"
    assert page.count(f"measured {said}") == page.count(f">{said}</td>") == 1


def test_a_configuration_over_the_limit_counts_as_not_measured():
    cells = [{"learning_rate": r, "batch_size": 64} for r in RATES]
    limited = small(
        "limited",
        "mid",
        configurations=cells,
        outcomes=[1.0, 2.0, 3.0, np.nan],
        status=["ok", "ok", "ok", "infeasible"],
        parameters=[1, 2, 3, 4],
        limit={"quantity": "parameters", "at_most": 3},
    )
    assert show_measured(limited) == "3 of 12 cells"
