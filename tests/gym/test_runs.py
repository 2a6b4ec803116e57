"""Which experiments the same runs answer."""

import dataclasses

from autollm_jax.gym.runs import runs_key
from tests.families import bowl_experiment


def changed(experiment, **fields):
    return dataclasses.replace(experiment, **fields)


def test_other_objectives_and_limits_share_runs_and_other_facts_and_tokens_do_not():
    whole = bowl_experiment("a", 1e7, 2e8, (2.0**-9, 128))
    loss = changed(whole, facts={"corpus": "web", "objective": "loss"})
    accuracy = changed(loss, name="b", facts={"corpus": "web", "objective": "accuracy"})
    assert runs_key(loss) == runs_key(accuracy)
    assert runs_key(loss) != runs_key(changed(loss, facts={"corpus": "code", "objective": "loss"}))
    longer = dataclasses.replace(loss.fidelity, tokens=4e8)
    assert runs_key(loss) != runs_key(changed(loss, fidelity=longer))
    small, large = (
        changed(
            whole,
            name=f"{n}",
            limit={"quantity": "parameters", "at_most": n},
            facts={"corpus": "web", "parameter_limit": n},
            fidelity=dataclasses.replace(whole.fidelity, parameters=n, flops=6 * n * 2e8),
        )
        for n in (1e6, 2e6)
    )
    assert runs_key(small) == runs_key(large) != runs_key(loss)


def test_an_experiment_that_names_neither_objective_nor_limit_shares_no_runs():
    a, b = (bowl_experiment(name, 1e7, 2e8, (2.0**-9, 128)) for name in "ab")
    assert runs_key(a) == a.id != runs_key(b)
