"""Rules between several fields of a config, checked before the first stage.

`check` takes a config whose single fields have been checked (`fields.checked`). Where a stage
builds an object that checks itself (a model's shape, a table plan), the object is built here too.
"""

from collections.abc import Callable, Iterator, Mapping

from ml_collections import ConfigDict

from autollm_jax.compilers import targets
from autollm_jax.data.tokenizer import reserved_ids
from autollm_jax.errors import UserError, one_line
from autollm_jax.ground_truth.grpo import GRPOSetup
from autollm_jax.ground_truth.plan import Plan
from autollm_jax.ground_truth.tasks import make_plan
from autollm_jax.job.fields import TRAINED, split_names
from autollm_jax.models import scaling
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.text.symbols import SYMBOLS

# Fields of the policy's shape that stages read from a config without published weights.
SHAPE = (
    *("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width"),
    *("short_conv", "rope_fraction", "mimetic", "scan_unroll", "dtype", "cache_dtype"),
    *("activations", "gradients", "attention", "attention_block", "remat", "row_logits"),
)


def check(config: ConfigDict) -> None:
    """Check the fields that depend on each other.

    Raises:
      UserError: some do not fit together; one line names them and their values.
    """
    rules = (_mesh, _plan, _tasks, _weights, _objective, _rollout, _methods, _lengths)
    for rule in (*rules, _vocabularies, _profile):
        for problem in rule(config):
            raise UserError(problem)
    if not config.policy.weights:
        _built("policy", lambda: policy_shape(config))
    tables = config.ground_truth.to_dict()
    for task in config.gym.tasks:
        _check_plan(task, _built(f"ground_truth.{task}", make_plan, tables, task))


def policy_shape(config: ConfigDict) -> TransformerConfig:
    """Return the shape of a policy that starts from random parameters.

    Raises:
      ValueError: the shape's fields do not fit together.
    """
    shape = TransformerConfig(**{name: config.policy[name] for name in SHAPE})
    return scaling.scaled(shape, config.policy.scale)


def _mesh(config: ConfigDict) -> Iterator[str]:
    sizes = config.mesh
    if [sizes.data, sizes.fsdp, sizes.tensor].count(-1) > 1:
        yield (
            f"config.mesh: data={sizes.data}, fsdp={sizes.fsdp}, tensor={sizes.tensor}; accepted "
            "is -1 in one of them at most"
        )


def _plan(config: ConfigDict) -> Iterator[str]:
    plan = config.plan
    if plan.write_budgets and not plan.budgets:
        yield "config.plan.write_budgets=True: name their file in config.plan.budgets"
    if plan.budgets and plan.compiler == targets.FAKE:
        yield (
            f"config.plan.budgets={plan.budgets}: budgets are of an accelerator's compiler; name "
            "one in config.plan.compiler, tpu:v5e:4x4 or gpu:h100:1x8 for example"
        )


def _tasks(config: ConfigDict) -> Iterator[str]:
    for task in split_names(config.gym.trained_tasks):
        if task not in config.gym.tasks:
            yield (
                f"config.gym.trained_tasks={config.gym.trained_tasks}: {task} is not in "
                f"config.gym.tasks={','.join(config.gym.tasks)}"
            )


def _weights(config: ConfigDict) -> Iterator[str]:
    policy, members = config.policy, config.grpo.members
    if policy.weights and members == "enumerated":
        yield (
            f"config.grpo.members={members} needs a vocabulary in which the name of each panel is "
            "one token, one trained here; with config.policy.weights accepted is sampled"
        )
    if members == "sampled" and config.grpo.steps and config.grpo.group_size < 2:
        yield (
            f"config.grpo.group_size={config.grpo.group_size}: sampled episodes are compared "
            "within their group; accepted is 2 or more with config.grpo.members=sampled"
        )
    if policy.lora_rank and not policy.weights:
        yield (
            f"config.policy.lora_rank={policy.lora_rank}: LoRA factors are trained beside "
            "published weights; name some in config.policy.weights, or set it to 0"
        )
    if policy.lora_rank and not policy.lora_targets:
        yield (
            f"config.policy.lora_rank={policy.lora_rank} needs matrices in "
            "config.policy.lora_targets, query,value for example"
        )


def _objective(config: ConfigDict) -> Iterator[str]:
    grpo = config.grpo
    for name, off in (("dual_clip", 0), ("ratio", "token"), ("importance_cap", 0)):
        if grpo.members == "enumerated" and grpo[name] != off:
            yield (
                f"config.grpo.{name}={grpo[name]}: enumerated groups have no probability ratios; "
                f"accepted is {off} with config.grpo.members=enumerated"
            )


def _rollout(config: ConfigDict) -> Iterator[str]:
    rows, size = config.rollout.rows, config.grpo.group_size
    if config.grpo.steps and rows % size:
        yield (
            f"config.rollout.rows={rows}: accepted is a multiple of "
            f"config.grpo.group_size={size}, whose episodes read their prompt together, or 0"
        )
    if config.rollout.drafts and config.policy.short_conv and not config.policy.weights:
        yield (
            f"config.rollout.drafts={config.rollout.drafts} needs a policy without short "
            "convolutions, which read drafts as their past; set config.policy.short_conv=0"
        )


def _methods(config: ConfigDict) -> Iterator[str]:
    if "zero_shot" in split_names(config.evaluation.methods) and not config.policy.weights:
        yield (
            "config.evaluation.methods names zero_shot, which plays published weights; name some "
            "in config.policy.weights"
        )


def _lengths(config: ConfigDict) -> Iterator[str]:
    policy = config.policy
    if policy.turn_tokens >= policy.context:
        yield (
            f"config.policy.turn_tokens={policy.turn_tokens}: accepted is a number below "
            f"config.policy.context={policy.context}, which holds prompts and turns"
        )


def _profile(config: ConfigDict) -> Iterator[str]:
    steps, stage = config.profile.steps, config.profile.stage
    trained = {name: config[name].steps for name in ((stage,) if stage else TRAINED)}
    if steps and int(steps.split(":")[0]) >= max(trained.values()):
        yield (
            f"config.profile.steps={steps}: no such step of "
            + " or ".join(f"config.{name}.steps={count}" for name, count in trained.items())
        )


def _vocabularies(config: ConfigDict) -> Iterator[str]:
    taken = {
        "ground_truth.language_model": reserved_ids(),
        "policy": 0 if config.policy.weights else reserved_ids(SYMBOLS),
    }
    sizes = {
        "ground_truth.language_model": config.ground_truth.language_model.vocab_size,
        "policy": config.policy.vocab_size,
    }
    for section, size in sizes.items():
        if size <= taken[section]:
            yield (
                f"config.{section}.vocab_size={size}: accepted is a number over {taken[section]}, "
                "which is how many ids control tokens, symbols and bytes take"
            )


def _built(section: str, make: Callable, *arguments):
    """Return make(*arguments); what it refuses is an error of a config's section."""
    try:
        return make(*arguments)
    except KeyError as error:
        raise UserError(f"config.{section}: field {error} is missing") from error
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        raise UserError(f"config.{section}: {one_line(error)}") from error


def _check_plan(task: str, plan: Plan) -> None:
    """Check what only the training of a table plan's runs would find."""
    section = f"ground_truth.{task}"
    if not plan.cells:
        raise UserError(f"config.{section}: no level; accepted are low, mid and high, one at least")
    for run in {cell.run.program: cell.run for cell in plan.cells}.values():
        _built(section, plan.setup.model, run)
        if isinstance(plan.setup, GRPOSetup):
            _check_rollout(section, plan.setup, run.group_size)


def _check_rollout(section: str, setup: GRPOSetup, group_size: int) -> None:
    divisors: Mapping[str, int] = {
        "choices.group_size": group_size,
        "setup.minibatch_rows": setup.minibatch_rows,
    }
    for name, size in divisors.items():
        if setup.rollout_rows % size:
            raise UserError(
                f"config.{section}.{name}={size}: accepted is a divisor of "
                f"config.{section}.setup.rollout_rows={setup.rollout_rows}"
            )
