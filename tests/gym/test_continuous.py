"""Tables with continuous dimensions: written, read, matched and played."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import split
from autollm_jax.gym.stress import KINDS, Stress, axes_by_importance, distort
from tests.gym.test_gymnasium_env import ADDRESS

SPACE = Space(
    (
        Dimension("rate", "log-continuous", bounds=(1e-4, 1e-2)),
        Dimension("decay", "continuous", bounds=(0.0, 0.5)),
        Dimension("depth", "ordinal", (2, 4, 8)),
    )
)


def rows_of(name: str, seed: int, best: float) -> list[dict]:
    random = np.random.default_rng(seed)
    configs = [SPACE.from_unit(unit_D) for unit_D in random.random((30, 3))]
    return [
        {f"config.{key}": value for key, value in config.items()}
        | {"experiment": name, "flops": 1e9, "seconds": 1.0, "seed": 0, "status": "ok"}
        | {"loss": 2 + np.log10(config["rate"] / best) ** 2 + config["decay"]}
        for config in configs
    ]


@pytest.fixture
def root(tmp_path):
    entry = {
        "context": {},
        "space": SPACE.to_json(),
        "objective": {"metric": "loss", "goal": "minimize"},
        "default": {"rate": 1e-3, "decay": 0.1, "depth": 4},
        "default_origin": "the tests",
    }
    levels = {"small": ("low", 1e6), "large": ("mid", 1e7)}
    experiments = {
        name: entry | {"fidelity": {"level": level, "parameters": n, "tokens": 1e8, "flops": n}}
        for name, (level, n) in levels.items()
    }
    meta = {"format": 1, "source": "test", "task": "pretraining", "experiments": experiments}
    tables.write_table(tmp_path, meta, [*rows_of("small", 0, 2e-3), *rows_of("large", 1, 1e-3)])
    return tmp_path


@pytest.fixture
def family(root):
    return load_experiments([root])


def test_a_cell_is_found_again_from_a_few_digits_and_others_are_matched(family):
    large = family[0]
    config = large.configurations[7]
    rounded = {"rate": float(f"{config['rate']:.4g}"), "decay": float(f"{config['decay']:.4g}")}
    assert rounded["rate"] != config["rate"]
    assert large.match(config) == large.match(config | rounded) == (7, False)
    assert large.cells.find(config) == 7 and large.lookup(config) == large.outcomes.values_R[7]
    row, matched = large.match(config | {"rate": 1e-4 if config["rate"] > 1e-3 else 1e-2})
    assert matched and 0 <= row < 30
    trial = Episode(large, (), 1).exec_config(config | {"decay": 0.9})
    assert trial.valid and trial.matched  # as with a number off the grid


def test_repeats_of_a_configuration_are_pooled_in_single_precision_too(make):
    config = {"rate": 0.00123, "decay": 0.3, "depth": 2}
    single = config | {"rate": float(np.float32(0.00123)), "decay": float(np.float32(0.3))}
    pooled = make(space=SPACE, configurations=[config, single], outcomes=[1.0, 3.0], default=config)
    assert len(pooled.configurations) == 1 and pooled.outcomes.values_R.tolist() == [2.0]


def test_many_look_ups_by_choice_are_refused_by_the_dimension(family):
    with pytest.raises(ValueError, match="rate is of kind log-continuous.*one configuration"):
        family[0].lookup_many(np.zeros((1, 3), int))


def test_a_value_beyond_its_bounds_is_refused_by_its_row(root):
    path = root / "test" / "pretraining.parquet"
    table = tables.read_table(path)
    rows = table.rows.to_pylist()
    rows[3]["config.decay"] = 0.7
    tables.write_table(root, table.meta, rows)
    with pytest.raises(UserError, match=r"row 4 .*decay is 0.7; accepted are numbers from 0 to"):
        load_experiments([root])


def test_gymnasium_plays_it(family):
    env = gymnasium.make(ADDRESS, experiment=family[0], evidence=family[1:], budget=4)
    check_env(env.unwrapped)
    env.reset(seed=0)
    for row in range(4):
        *_, info = env.step(family[0].units_RD[row].astype(np.float32))
        assert info["trial"].config == family[0].configurations[row]


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_over_it_can_be_stressed(family, kind):
    made = distort(split(family, "dev"), Stress(kind))
    (cheap,) = made.training
    assert all(cheap.space.validate(config) == config for config in cheap.configurations)
    if kind == "reverse":
        axis = axes_by_importance(family[1:])[0]
        before, after = (
            e.space[axis].to_unit(e.configurations[e.outcomes.best_row][axis])
            for e in (family[1], cheap)
        )
        assert SPACE[axis].is_continuous and abs(before[0] - 0.5) > 0.1
        np.testing.assert_allclose(after, 1 - before)
