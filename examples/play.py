"""Play an experiment by hand: python examples/play.py"""

from pathlib import Path

from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import evidence_for, split

GYM_DATA = Path(__file__).parents[1] / "gym_data"
experiments = split(load_experiments(GYM_DATA, tasks=["pretraining"]), "dev")
target = experiments.held_out[0]
episode = Episode(target, evidence_for(target, experiments.training), budget=3)
seen = episode.tell()
print(f"{seen.setting.id}: {len(seen.setting.configurations)} configurations")
for cheap in seen.evidence[:3]:
    best = cheap.configurations[cheap.outcomes.best_row]
    print(f"  best of {cheap.name}: {best}, {cheap.outcomes.optimum:.3f}")

# Try what was best on the nearest cheap experiment, then its neighbours in learning rate.
config = dict(seen.evidence[-1].configurations[seen.evidence[-1].outcomes.best_row])
while not episode.done:
    trial = episode.exec_config(config)
    print(f"trial {trial.number}: {trial.config} {trial.status} {trial.outcome:.3f}")
    config = {**config, "learning_rate": config["learning_rate"] / 2}
print(
    f"regret {episode.best_regret():.3f}: 0 is the best configuration, 1 no better than the median"
)
