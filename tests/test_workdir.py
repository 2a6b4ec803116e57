import json

import pytest

from autollm_jax import workdir
from autollm_jax.errors import UserError

CONFIG = {"seed": 0, "gym": {"roots": ["a"]}, "evaluation": {"seeds": [0]}, "protocol": "dev"}


@pytest.fixture
def claimed(tmp_path):
    """A work directory in which something has been done."""
    workdir.claim(tmp_path, CONFIG, scoring=False)
    (tmp_path / "trajectories").mkdir()
    return tmp_path


def test_the_first_claim_writes_the_config(claimed):
    assert json.loads((claimed / "config.json").read_text()) == CONFIG


def test_another_config_is_refused_by_its_first_field_and_nothing_changes(claimed):
    before = (claimed / "config.json").read_bytes()
    with pytest.raises(UserError, match="config.seed is 0 there and 1 now") as error:
        workdir.claim(claimed, CONFIG | {"seed": 1}, scoring=False)
    assert "\n" not in str(error.value)
    assert (claimed / "config.json").read_bytes() == before


def test_fields_that_do_not_shape_training_may_change(claimed):
    workdir.claim(claimed, CONFIG | {"evaluation": {"seeds": [0, 1]}}, scoring=False)


def test_only_scoring_may_change_the_tables_and_the_protocol(claimed):
    elsewhere = CONFIG | {"gym": {"roots": ["b"]}, "protocol": "final"}
    workdir.claim(claimed, elsewhere, scoring=True)
    with pytest.raises(UserError, match="config.gym.roots"):
        workdir.claim(claimed, elsewhere, scoring=False)


def test_a_field_that_one_config_lacks_is_a_difference(claimed):
    with pytest.raises(UserError, match="config.grpo is None there"):
        workdir.claim(claimed, CONFIG | {"grpo": 1}, scoring=False)


def test_a_damaged_config_is_named(claimed):
    (claimed / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not JSON"):
        workdir.claim(claimed, CONFIG, scoring=False)


def test_a_directory_in_which_nothing_was_done_takes_another_config(tmp_path):
    for seed in (0, 1):
        workdir.claim(tmp_path, CONFIG | {"seed": seed}, scoring=False)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
