"""The job: its config, work directory and mesh, and the files and objects that stages share."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from autollm_jax.agent import dialogue
from autollm_jax.agent.dialogue import ChatTokenizer, PolicyTokenizer
from autollm_jax.agent.rollout import PlayConfig
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import distributed, preemption
from autollm_jax.curriculum.pairs import Recipe
from autollm_jax.curriculum.teacher import Trajectory
from autollm_jax.errors import UserError
from autollm_jax.files import read_json_lines
from autollm_jax.gym.experiments import Experiment, load_experiments
from autollm_jax.gym.splits import Split, split
from autollm_jax.gym.stress import Stress
from autollm_jax.job.constraints import policy_shape
from autollm_jax.job.fields import split_names
from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published import pretrained
from autollm_jax.published.tokenizer import PretrainedTokenizer
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.sharding.mesh import MeshShape, for_play, make_mesh, split_mesh
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer, updates_of
from autollm_jax.training.profiling import Window
from autollm_jax.training.state import abstract_state, init_state

STRESS_PREFIX = "stress_"


@dataclasses.dataclass(frozen=True)
class Job:
    """The argument of every stage: the config, the work directory and the mesh."""

    config: ConfigDict
    workdir: Path
    mesh: jax.sharding.Mesh

    @classmethod
    def start(cls, config: ConfigDict, workdir: str) -> "Job":
        """Connect the processes, find the devices and make the mesh.

        Args:
          config: the config, as `fields.checked` returns it.
          workdir: the folder that holds everything the job writes.

        Raises:
          UserError: the mesh does not fit the devices, or the processes do not all connect.
        """
        # JAX_ENABLE_X64 is overruled: other types would change the results of a job.
        jax.config.update("jax_enable_x64", False)
        settings = distributed.Settings(**config.distributed)
        _split_cpu(config.mesh.cpu_devices)
        distributed.start(settings)
        preemption.listen()
        distributed.check(config.to_dict(), Path(workdir))
        shape = MeshShape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        return cls(config, Path(workdir), make_mesh(shape))

    def check_weights(self) -> None:
        """Open the published weights and their vocabulary, before any stage runs.

        Raises:
          UserError: weights or vocabulary are missing or damaged, or do not fit each other.
        """
        if self.weights:
            try:
                _ = self.model, self.tokenizer
            except ValueError as error:
                raise UserError(f"config.policy: {error}") from error

    @property
    def alone(self) -> "Job":
        """The same job on the devices of this process, for a stage that one process runs."""
        if distributed.count() == 1:
            return self
        config = self.config.copy_and_resolve_references()
        config.mesh.player_tensor = 0
        return dataclasses.replace(
            self, config=config, mesh=make_mesh(MeshShape(), jax.local_devices())
        )

    @property
    def player_mesh(self) -> jax.sharding.Mesh:
        """The same devices as they play episodes."""
        return for_play(self.mesh, self.config.mesh.player_tensor)

    @property
    def grpo_meshes(self) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
        """The devices that GRPO's rollouts play on, and those that its updates train on.

        They are the same devices, but where rollouts are one step ahead.

        Raises:
          UserError: the mesh cannot be split so.
        """
        players = trainers = self.mesh
        if self.config.grpo.off_policy_steps:
            players, trainers = split_mesh(self.mesh, self.config.grpo.player_replicas)
        return for_play(players, self.config.mesh.player_tensor), trainers

    @property
    def rollout_rows(self) -> int:
        """How many episodes GRPO plays side by side."""
        episodes = self.config.grpo.groups * self.config.grpo.group_size
        return min(self.config.rollout.rows or episodes, episodes)

    @property
    def cache(self) -> Path:
        """The folder of vocabularies and token streams of corpora."""
        return self.workdir / "cache"

    def under_workdir(self, folder: str) -> str:
        """Replace `{workdir}` in a config field that names a folder."""
        return folder.replace("{workdir}", str(self.workdir))

    @property
    def roots(self) -> list[str]:
        """The folders of outcome tables."""
        return [self.under_workdir(root) for root in self.config.gym.roots.split(",")]

    @property
    def tables_root(self) -> str:
        """The folder that the project's own tables are written to."""
        return self.under_workdir(self.config.ground_truth.root)

    @property
    def trajectories_path(self) -> Path:
        return self.workdir / "trajectories" / "trajectories.jsonl"

    @property
    def tokenizer_path(self) -> Path:
        """The file of the policy's vocabulary."""
        return self.workdir / "trajectories" / "tokenizer.model"

    @property
    def stress(self) -> Stress:
        """The stress test: a change of the evidence in every game."""
        return Stress(**self.config.stress)

    @property
    def results_path(self) -> Path:
        """The file of results; the results of each stress test have a folder of their own."""
        folder = self.workdir / "evaluation"
        if self.stress.label:
            folder = folder / f"{STRESS_PREFIX}{self.stress.label}"
        return folder / "results.parquet"

    @property
    def report_folder(self) -> Path:
        folder = self.workdir / "report"
        return folder / f"{STRESS_PREFIX}{self.stress.label}" if self.stress.label else folder

    def stress_results(self) -> dict[str, Path]:
        """Return the results files of all evaluated stress tests, by label."""
        found = (self.workdir / "evaluation").glob(f"{STRESS_PREFIX}*/results.parquet")
        return {p.parent.name.removeprefix(STRESS_PREFIX): p for p in sorted(found)}

    def pairs_path(self, name: str) -> Path:
        return self.workdir / "trajectories" / f"pairs_{name}.jsonl"

    @functools.cached_property
    def split(self) -> Split:
        """The training experiments and the held-out experiments, as `config.protocol` says."""
        experiments = load_experiments(self.roots, self.config.gym.tasks)
        return split(experiments, self.config.protocol)

    @property
    def training(self) -> tuple[Experiment, ...]:
        """The training experiments of `gym.trained_tasks` and `gym.trained_sources`.

        Raises:
          UserError: these have no training experiment.
        """
        gym, known = self.config.gym, self.split.training
        tasks = split_names(gym.trained_tasks) or gym.tasks
        sources = split_names(gym.trained_sources) or {e.source for e in known}
        found = tuple(e for e in known if e.task in tasks and e.source in sources)
        if not found:
            raise UserError(
                f"config.gym.trained_tasks={gym.trained_tasks}, config.gym.trained_sources="
                f"{gym.trained_sources}: no training experiment; the tables have "
                + ", ".join(sorted({f"{e.task} of {e.source}" for e in known}))
            )
        return found

    def pairs(self, name: str) -> list[Recipe]:
        """Read the curated pairs for distillation ("distill") or GRPO ("grpo")."""
        path = needed(self.pairs_path(name), "curate")
        return read_json_lines(path, Recipe.from_json, remedy="give --restart=curate")

    def trajectories(self) -> list[Trajectory]:
        """Read the simulated episodes."""
        path = needed(self.trajectories_path, "simulate")
        return read_json_lines(path, Trajectory.from_json, remedy="give --restart=simulate")

    @functools.cached_property
    def weights(self) -> Path | None:
        """The path of the published weights that the policy starts from, or None."""
        return pretrained.find(self.config.policy.weights) if self.config.policy.weights else None

    @functools.cached_property
    def tokenizer(self) -> PolicyTokenizer | ChatTokenizer:
        """The policy's vocabulary."""
        if self.weights:
            return ChatTokenizer(self._published_vocabulary)
        return PolicyTokenizer.load(needed(self.tokenizer_path, "simulate"))

    def tokenizer_with_examples(self, shots: int) -> ChatTokenizer:
        """Return the published vocabulary; its instructions show `shots` simulated first turns."""
        shown = dialogue.examples(self.trajectories(), shots) if shots else ""
        return ChatTokenizer(self._published_vocabulary, shown)

    @functools.cached_property
    def _published_vocabulary(self) -> PretrainedTokenizer:
        return pretrained.load_tokenizer(self.weights)

    @functools.cached_property
    def model(self) -> TransformerConfig:
        """The policy's shape, its cache in the order of the job's devices."""
        policy = self.config.policy
        slots_first = self.mesh.devices.flat[0].platform == "tpu"
        if policy.weights:
            lora_targets = tuple(policy.lora_targets.split(",")) if policy.lora_rank else ()
            numerics = ("dtype", "cache_dtype", "activations", "gradients", "attention", "remat")
            sizes = ("attention_block", "row_logits", "scan_unroll", "lora_rank", "lora_scale")
            return dataclasses.replace(
                pretrained.shape_of(policy.weights, policy.shape.to_dict()),
                **{name: policy[name] for name in (*numerics, *sizes)},
                lora_targets=lora_targets,
                slots_first=slots_first,
            )
        return dataclasses.replace(policy_shape(self.config), slots_first=slots_first)

    def optimizer(self, stage: ConfigDict):
        """Make the optimizer of a stage, given the stage's config."""
        return make_optimizer(OptimizerConfig(**stage.optimizer), updates_of(stage))

    def traced(self, stage: str) -> Window | None:
        """Return the steps of a stage to trace, and where to; None for none."""
        profile = self.config.profile
        if not profile.steps or profile.stage not in ("", stage):
            return None
        first, last = map(int, profile.steps.split(":"))
        return Window(first, last, self.workdir / "profile" / stage)

    def checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.workdir / "checkpoints" / stage)

    def best_checkpoints(self, stage: str) -> Checkpoints:
        """The checkpoints of a stage's best policy on kept-out experiments; GRPO alone has some."""
        return self.checkpoints(f"{stage}_best")

    @property
    def most_sampled(self) -> int:
        """Tokens that the policy may sample in an episode."""
        return self.config.gym.budget * self.config.policy.turn_tokens

    def grpo_hyperparameters(self) -> GRPOHyperparameters:
        names = [field.name for field in dataclasses.fields(GRPOHyperparameters)]
        chosen = {n: self.config.grpo[n] for n in names}
        # An episode's last turn is always learned.
        first_turn = min(chosen["first_turn"], self.config.gym.budget)
        return GRPOHyperparameters(**chosen | {"first_turn": first_turn})

    def play(self, temperature: float) -> PlayConfig:
        """Return the settings by which the policy plays, in training and in evaluation."""
        policy, rollout = self.config.policy, self.config.rollout
        sizes = SamplerConfig(
            context=policy.context,
            cache_block=rollout.cache_block,
            chunk_sizes=(rollout.chunk,),
            cache_doubling=rollout.cache_doubling,
        )
        full, constrained = policy.full_texts, self.config.evaluation.constrained
        return PlayConfig(
            *(sizes, policy.turn_tokens, temperature, constrained, full, self.stress.failing),
            ended_share=rollout.ended_share,
            drafts=rollout.drafts,
        )

    def first_parameters(self):
        """Make the parameters that training starts from: published or random parameters.

        Each call reads published weights again: a cached copy would take memory in later stages.
        """
        model, key = self.model, jax.random.key(self.config.seed)
        if not self.weights:
            init, axes = functools.partial(transformer.init, model), transformer.logical_axes(model)
            return init_state(init, axes, optax.identity(), key, self.mesh).params
        _, published = pretrained.load(self.weights, self.mesh)
        if not model.lora_rank:
            return published
        init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
        return lora.join(published, init_state(init, axes, optax.identity(), key, self.mesh).params)

    def parameters(self, stage: str, first: Callable | None = None):
        """Restore the parameters that a stage trained; a stage of 0 steps has the first parameters.

        Args:
          stage: distill or grpo.
          first: returns the first parameters, where the caller has them in memory already. The
            result shares their frozen part. None calls `first_parameters`.

        Raises:
          UserError: the stage is not finished, or its last checkpoint is damaged.
        """
        first = first or self.first_parameters
        if not self.config[stage].steps:
            return first()
        model, checkpoints = self.model, self.checkpoints(stage)
        if checkpoints.latest() != self.config[stage].steps:
            raise UserError(
                f"{checkpoints.directory}: no policy of {self.config[stage].steps} steps; "
                f"run --stage={stage} first"
            )
        init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
        optimizer = self.optimizer(self.config[stage])
        abstract = abstract_state(init, axes, optimizer, self.mesh)
        best = self.best_checkpoints(stage)
        if best.latest() is None:
            state, _ = checkpoints.restore(abstract, step=self.config[stage].steps)
        else:
            state, _ = best.restore(abstract)
        frozen = lora.split(model, first())[0] if model.lora_rank else {}
        return lora.join(frozen, state.params)


def of_one_process(config: ConfigDict) -> ConfigDict:
    """Return a copy of a config for a job of this process alone."""
    config = config.copy_and_resolve_references()
    config.distributed.processes = 1  # overrules a scheduler
    return config


def needed(path: Path, stage: str) -> Path:
    """Return the path of a file that an earlier stage writes.

    Raises:
      UserError: the file is missing.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; run --stage={stage} first")
    return path


def _split_cpu(devices: int) -> None:
    """Split the CPU into JAX devices, unless XLA_FLAGS does; accelerators are unaffected."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
