import dataclasses
import math

import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.sources import hwgpt
from autollm_jax.sources import hwgpt_predictor as predictor
from tests.sources.torch_files import torch_file

HIDDEN = 4
SCALES = {scale.name: scale for scale in predictor.SCALES}


def weights(scale="s", hidden=HIDDEN, **changes):
    """A predictor whose perplexity is about 40 and falls with the inputs of large choices."""
    random = np.random.default_rng(0)
    sizes = [SCALES[scale].inputs, *[hidden] * 4, 1]
    arrays = {}
    for place, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), start=1):
        arrays[f"fc{place}.weight"] = random.normal(size=(after, before)) / before
        arrays[f"fc{place}.bias"] = random.normal(size=after)
    arrays["fc5.bias"] = np.array([40.0])
    return arrays | changes


@pytest.fixture
def write(tmp_path):
    def write(scale="s", arrays=None, folder=tmp_path):
        return torch_file(folder / f"perplexity_{scale}.pt", arrays or weights(scale))

    return write


def load(path, root):
    [(meta, rows)] = hwgpt.read(path)
    tables.write_table(root, meta, rows)
    return {e.name: e for e in load_experiments([root])}


def test_the_one_hot_inputs_come_in_upstreams_order():
    scale = SCALES["s"]
    assert [scale.inputs for scale in predictor.SCALES] == [80, 152, 224]
    encoded = predictor.one_hot(scale, predictor.Architecture(384, 10, 3, 12, False))
    assert encoded[:6].tolist() == [0, 1, 0, 1, 0, 0]  # width 384, 10 layers
    assert encoded[6:36].tolist() == [0, 1, 0] * 10  # MLP ratio 3
    assert encoded[36:42].tolist() == [0] * 6  # no layers 11 and 12
    assert encoded[42:72].tolist() == [0, 0, 1] * 10  # 12 heads
    assert encoded[72:].tolist() == [0] * 6 + [0, 1]  # no bias


def test_the_predictor_is_the_published_network(write):
    read, arrays = predictor.read_predictor(write()), weights()
    assert read.scale.name == "s"
    architectures = predictor.uniform_architectures(read.scale)[::40]
    hidden = np.stack([predictor.one_hot(read.scale, a) for a in architectures]).T
    for place in range(1, 6):
        w, b = (
            arrays[f"fc{place}.{kind}"].astype("f4").astype(float) for kind in ("weight", "bias")
        )
        hidden = w @ hidden + b[:, None]
        hidden = np.maximum(hidden, 0) if place < 5 else hidden
    np.testing.assert_allclose(read.perplexities(architectures), hidden[0], rtol=1e-12)


def test_tensors_in_another_order_change_nothing(write):
    architectures = predictor.uniform_architectures(SCALES["s"])[::50]
    expected = predictor.read_predictor(write()).perplexities(architectures)
    read = predictor.read_predictor(write(arrays=dict(reversed(weights().items()))))
    np.testing.assert_array_equal(read.perplexities(architectures), expected)


def test_parameters_of_gpt2s_architecture():
    # GPT-2 small has 124.4M with its 50,257 tokens and learned positions; this has neither.
    gpt2 = predictor.Architecture(768, 12, 4, 12, True)
    positions, tokens = 1024 * 768, 3 * 768
    assert gpt2.parameters == 124_439_808 - positions - tokens


def test_parameters_count_ratio_heads_and_bias_in_every_layer():
    def count(ratio=2, heads=4, bias=False):
        return predictor.Architecture(192, 10, ratio, heads, bias).parameters

    assert count(ratio=4) - count() == 10 * 2 * 2 * 192**2
    assert count(heads=8) - count() == 10 * 4 * 4 * 64 * 192
    assert count(bias=True) - count() == 10 * (3 * 4 * 64 + 192 + 2 * 192 + 192)


def test_the_table_is_the_full_grid_of_architectures_with_like_layers():
    for scale in predictor.SCALES:
        assert len(set(predictor.uniform_architectures(scale))) == 3 * 3 * 3 * 3 * 2
        assert math.prod(len(d.choices) for d in hwgpt.scale_space(scale).dimensions) == 162


@pytest.mark.parametrize(("scale", "level"), [("s", "low"), ("m", "mid"), ("l", "high")])
def test_an_experiment_is_a_scale_and_a_limit(write, tmp_path, scale, level):
    write(scale)
    experiments = load(tmp_path, tmp_path / "root")
    assert sorted(experiments) == [f"{scale}_p{percent}" for percent in hwgpt.LIMIT_PERCENTILES]
    for name, experiment in experiments.items():
        assert (experiment.fidelity.level, experiment.objective.minimize) == (level, True)
        assert len(experiment.configurations) == 162
        fraction = experiment.feasible_R.mean()
        np.testing.assert_allclose(fraction, int(name[3:]) / 100, atol=0.01)
        assert ((experiment.outcomes.status_R == "ok") == experiment.feasible_R).all()
        assert experiment.cells is experiments[f"{scale}_p25"].cells


def test_outcomes_and_parameters_are_those_of_the_configuration(write, tmp_path):
    experiment = load(write(), tmp_path / "root")["s_p90"]
    architectures = predictor.uniform_architectures(SCALES["s"])
    perplexities = predictor.read_predictor(tmp_path / "perplexity_s.pt").perplexities(
        architectures
    )
    checked = 0
    for architecture, perplexity in zip(architectures, perplexities, strict=True):
        config = dataclasses.asdict(architecture)
        row, matched = experiment.match(config)
        assert not matched and experiment.configurations[row] == config
        assert experiment.parameters_R[row] == architecture.parameters
        if experiment.feasible_R[row]:
            assert experiment.lookup(config) == perplexity
            checked += 1
    assert checked > 100


def test_the_default_is_the_largest_of_gpt2s_kind_that_fits(write, tmp_path):
    experiments = load(write(), tmp_path / "root")
    for experiment in experiments.values():
        row, matched = experiment.match(experiment.default)
        assert experiment.feasible_R[row] and not matched
    full = SCALES["s"]
    best, origin = hwgpt.untuned_default(full, 1e12)
    assert best == predictor.Architecture(768, 12, 4, 12, True)
    assert "GPT-2" in origin
    smallest = min(a.parameters for a in predictor.uniform_architectures(full))
    assert hwgpt.untuned_default(full, smallest)[0].parameters == smallest
    assert "none is within" in hwgpt.untuned_default(full, smallest - 1)[1]


def test_files_are_found_by_folder_in_a_clone_and_under_another_name(write, tmp_path):
    folder = tmp_path / hwgpt.FOLDER
    folder.mkdir(parents=True)
    small = write("s", folder=folder)
    write("l", folder=folder)
    [(meta, _)] = hwgpt.read(tmp_path)
    assert list(meta["upstream"]["files"]) == ["perplexity_s.pt", "perplexity_l.pt"]
    [(meta, _)] = hwgpt.read(small.rename(tmp_path / "any.pt"))
    assert all(name.startswith("s_") for name in meta["experiments"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc1.weight": np.ones((HIDDEN, 81))}, r"has 81 inputs; accepted are 80 \(s\), 152 \(m\)"),
        ({"fc3.weight": np.ones((HIDDEN, 5))}, "the shapes of fc3 do not fit"),
        ({"fc3.bias": np.ones(5)}, "the shapes of fc3 do not fit"),
        ({"fc2.bias": np.array([1, 2, np.nan, 4])}, "fc2 holds a number that is not finite"),
        ({"fc5.weight": np.ones((2, HIDDEN)), "fc5.bias": np.ones(2)}, "has 2 outputs"),
        ({"fc6.bias": np.ones(1)}, "tensor fc6.bias is not known"),
        ({"fc5.bias": np.array([-40.0])}, "predicts the perplexity -"),
    ],
)
def test_what_is_no_such_predictor_is_one_clear_line(write, changes, message):
    with pytest.raises(UserError, match=message) as error:
        hwgpt.read(write(arrays=weights(**changes)))
    assert "\n" not in str(error.value) and "perplexity_s.pt" in str(error.value)


def test_a_missing_tensor_is_named(write):
    arrays = weights()
    del arrays["fc4.weight"]
    with pytest.raises(UserError, match="tensor fc4.weight is missing"):
        hwgpt.read(write(arrays=arrays))


def test_two_files_of_one_scale_are_refused(write, tmp_path):
    write("s")
    write("m", arrays=weights("s"))
    with pytest.raises(UserError, match="perplexity_m.pt: is of scale s, as perplexity_s.pt is"):
        hwgpt.read(tmp_path)


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(UserError, match="no HW-GPT-Bench file; accepted is a folder with some of"):
        hwgpt.read(tmp_path)


def test_the_published_files_import_as_described(published, tmp_path):
    folder = published("hwgpt")
    [(meta, _)] = hwgpt.read(folder)
    assert set(meta["upstream"]["files"].values()) <= set(hwgpt.SOURCE.files.values())
    experiments = load(folder, tmp_path)
    assert {e.fidelity.level for e in experiments.values()} >= {"low", "mid"}
    for scale, low, high in (("s", 23, 45), ("m", 20, 37)):
        rows = experiments[f"{scale}_p90"]
        assert len(rows.configurations) == 162
        assert low < rows.outcomes.optimum < np.nanmax(rows.outcomes.values_R) < high
        # The more parameters the limit leaves, the better the best architecture.
        optima = [experiments[f"{scale}_p{p}"].outcomes.optimum for p in hwgpt.LIMIT_PERCENTILES]
        assert optima == sorted(optima, reverse=True) and len(set(optima)) == 4
