import math
import runpy
import weakref

import jax
import pytest

from autollm_jax import stages
from autollm_jax.errors import UserError
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import split
from autollm_jax.job import Job
from autollm_jax.sharding.mesh import MeshShape, make_mesh

get_config = runpy.run_path("configs/gym.py")["get_config"]


@pytest.fixture
def job(tmp_path):
    return Job(get_config("smoke"), tmp_path, make_mesh(MeshShape()))


def test_the_committed_tables_are_those_of_the_default_config(tmp_path):
    job = Job(get_config(), tmp_path, make_mesh(MeshShape()))
    stages.ground_truth(job)  # would train for hours, or refuse, if it were not so
    assert not list(tmp_path.iterdir())


OWN = load_experiments(["gym_data"])


@pytest.mark.parametrize("experiment", OWN, ids=lambda e: f"{e.task}-{e.name}")
def test_a_committed_experiment_can_be_learned_from(experiment):
    """More than half a grid's cells are worse than its optimum; noise and default are known."""
    regrets = experiment.outcomes.regrets_R[experiment.feasible_R]
    assert 0 < experiment.outcomes.noise < math.inf
    assert (regrets > 0).sum() > len(regrets) / 2
    assert not experiment.match(experiment.default).matched


@pytest.mark.parametrize(
    "experiment", [e for e in OWN if e.task == "pretraining"], ids=lambda e: e.name
)
def test_the_optimum_of_a_committed_grid_is_inside_it(experiment):
    best = experiment.configurations[experiment.outcomes.best_row]
    for dimension in experiment.space.dimensions:
        assert dimension.choices[0] < best[dimension.name] < dimension.choices[-1]


@pytest.mark.parametrize("experiment", [e for e in OWN if e.task == "grpo"], ids=lambda e: e.name)
def test_the_best_learning_rate_of_grpo_is_inside_its_grid(experiment):
    best = experiment.configurations[experiment.outcomes.best_row]["learning_rate"]
    choices = experiment.space["learning_rate"].choices
    assert choices[0] < best < choices[-1]


def test_a_stage_that_lacks_an_earlier_one_names_it(job):
    for stage, earlier in (("simulate", "curate"), ("distill", "simulate"), ("grpo", "curate")):
        with pytest.raises(UserError, match=f"run --stage={earlier} first"):
            stages.STAGES[stage](job)


def test_a_policy_that_was_not_trained_to_the_end_is_not_scored(job):
    with pytest.raises(UserError, match="no policy of 10 steps; run --stage=distill first"):
        job.parameters("distill")


def test_a_job_holds_no_parameters_between_its_stages(job):
    """A plan counts what a stage is given, so an earlier stage may not have left any."""
    params = job.first_parameters()
    leaf = weakref.ref(jax.tree.leaves(params)[0])
    assert leaf() is not None
    del params
    assert leaf() is None


def test_an_unknown_method_names_the_known_ones(job):
    job.config.evaluation.methods = "random,grid"
    job.__dict__["split"] = split(OWN, "dev")
    with pytest.raises(UserError, match="names 'grid'; accepted are agent, researcher, hybrid, "):
        stages.cross_validate(job)


def test_pooling_needs_to_be_told_what(job):
    with pytest.raises(UserError, match="no work directories to pool"):
        stages.pool(job)


def test_workdir_in_a_folder_of_the_config_is_replaced(job):
    assert job.roots == [f"{job.workdir}/gym_data"] == [job.tables_root]


def test_all_runs_every_stage_but_those_on_demand():
    assert set(stages.STAGES) - set(stages.PIPELINE) == {"verify", "cross_validate", "pool", "plan"}


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match="gym.py:big.*:smoke"):
        get_config("big")
