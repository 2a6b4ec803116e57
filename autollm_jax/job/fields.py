"""The fields of a job's config: a rule each, checked before the first stage.

`RULES` has one line per field: its path, where `*` stands for any one name, and what it accepts.
`checked` applies the rules and brings lists and paths into one form. Rules between several fields
are in `constraints.py`.
"""

import dataclasses
import fnmatch
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from autollm_jax.baselines import BASELINES, META_LEARNED
from autollm_jax.compilers import targets
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advisers import COUNSEL
from autollm_jax.gym.splits import PROTOCOLS
from autollm_jax.gym.stress import KINDS
from autollm_jax.gym.tables import LEVELS
from autollm_jax.models.config import FLOATS, MATRICES, REMATS
from autollm_jax.models.kernels import ATTENTIONS
from autollm_jax.peers import PEERS
from autollm_jax.rl import problems
from autollm_jax.rl.decoding import MOST_DRAFTS
from autollm_jax.rl.grpo import CREDITS, MEMBERS, NORMALISATIONS, RATIOS
from autollm_jax.training.optimizer import DECAYS

TASKS = ("architecture", "data_mixture", "grpo", "pretraining")
POLICY_METHODS = ("agent", "distilled", "zero_shot")
METHODS = (*POLICY_METHODS, "scorer", *BASELINES, *META_LEARNED, *PEERS)
TRAINED = ("distill", "grpo")  # stages that train the policy, step by step
STEPS = (
    *("distill update", "grpo update", "grpo reference", "grpo weights"),
    *("grpo append", "grpo decode", "grpo grow"),
    *("evaluate append", "evaluate decode", "evaluate grow"),
)
LARGEST_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field accepts.

    Attributes:
      accepted: the accepted values, in words that end "accepted is ...".
      holds: whether a value is one of them.
      form: brings an accepted value into the form that stages read.
    """

    accepted: str
    holds: Callable[[Any], bool]
    form: Callable[[Any], Any] = lambda value: value


def whole(least: int, most: float = math.inf, *, also: int | None = None) -> Rule:
    """Accept whole numbers of a range, and one more that has a meaning of its own."""

    def holds(value):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and (least <= value <= most or value == also)

    upper = "on" if most == math.inf else f"to {most:,}"
    special = "" if also is None else f", or {also}"
    return Rule(f"a whole number from {least} {upper}{special}", holds)


def number(least: float, most: float = math.inf, *, open: str = "", also=None) -> Rule:
    """Accept finite numbers of a range; `open` ("low", "high", "both") leaves out its ends.

    One more number, `also`, has a meaning of its own.
    """

    def holds(value):
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        above = value > least if open in ("low", "both") else value >= least
        below = value < most if open in ("high", "both") else value <= most
        return (above and below and math.isfinite(value)) or value == also

    lower = f"over {least:g}" if open in ("low", "both") else f"from {least:g}"
    under = "below" if open in ("high", "both") else "to"
    upper = "" if most == math.inf else f" {under} {most:g}"
    on = " on" if not upper and open != "low" else ""
    special = "" if also is None else f", or {also}"
    return Rule(f"a finite number {lower}{upper}{on}{special}", holds)


SHARE = number(0, 1)
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str))
ANYTHING = Rule("any value", lambda value: True)


def one_of(*choices: str) -> Rule:
    """Accept one of some texts."""
    shown = ", ".join(choice or '""' for choice in choices)
    return Rule(f"one of {shown}", lambda value: isinstance(value, str) and value in choices)


def text_like(pattern: str, accepted: str, fits: Callable = lambda match: True) -> Rule:
    """Accept texts that match a regular expression whole, and whose match fits."""

    def holds(value):
        match = re.fullmatch(pattern, value) if isinstance(value, str) else None
        return match is not None and fits(match)

    return Rule(accepted, holds)


def several(rule: Rule) -> Rule:
    """Accept a tuple or list of one value or more, all different, each as `rule` says."""

    def holds(value):
        if not isinstance(value, tuple | list) or not all(map(rule.holds, value)):
            return False
        return 0 < len(value) == len(set(value))

    return Rule(f"one or more values, each once, comma between, each {rule.accepted}", holds, tuple)


def split_names(value) -> tuple[str, ...] | None:
    """Return the names in a text with commas, or in a list of texts; None of anything else."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, tuple | list) or not all(isinstance(part, str) for part in parts):
        return None
    names = [name.strip() for part in parts for name in part.split(",")]
    return () if names == [""] else tuple(names)


def names(
    known: Iterable[str] = (), *, empty: bool = False, form: type = str, path: bool = False
) -> Rule:
    """Accept names: a text with a comma between them, or a list of texts.

    Args:
      known: the accepted names; any where empty.
      empty: whether there may be none.
      form: str or tuple, the form that stages read.
      path: names are paths, of which a leading `~` is the home folder.
    """
    known = tuple(known)

    def holds(value):
        found = split_names(value)
        if found is None or not (found or empty) or len(set(found)) < len(found):
            return False
        return all(name in known if known else name for name in found)

    def formed(value):
        found = split_names(value)
        found = tuple(map(os.path.expanduser, found)) if path else found
        return found if form is tuple else ",".join(found)

    kind = "paths" if path else "names"
    which = f" of {', '.join(known)}" if known else ""
    none = ', or ""' if empty else ""
    return Rule(f"one or more {kind}{which}, each once, comma between{none}", holds, formed)


PATH = Rule("a path", lambda value: isinstance(value, str) and value != "", os.path.expanduser)
PATH_OR_NONE = Rule('a path, or ""', lambda value: isinstance(value, str), os.path.expanduser)
COUNT = whole(1)
SEED = whole(0, LARGEST_SEED)
SEEDS = several(SEED)

OPTIMIZER = {
    "learning_rate": number(0),
    "warmup_fraction": SHARE,
    "decay": one_of(*DECAYS),
    "final_fraction": SHARE,
    "decay_fraction": SHARE,
    "weight_decay": number(0),
    "b1": number(0, 1, open="high"),
    "b2": number(0, 1, open="high"),
    "epsilon": number(0, open="low"),
    "clip_norm": number(0),
}

JOB_RULES = {
    "seed": whole(0, 2**30),
    "protocol": one_of(*PROTOCOLS),
    "compilation_cache": PATH_OR_NONE,
    "mesh.data": whole(1, also=-1),
    "mesh.fsdp": whole(1, also=-1),
    "mesh.tensor": whole(1, also=-1),
    "mesh.player_tensor": whole(0),
    "mesh.cpu_devices": COUNT,
    "distributed.coordinator": TEXT,
    "distributed.processes": whole(1, also=-1),
    "distributed.process_id": whole(0, also=-1),
    "distributed.one_host": FLAG,
    "distributed.timeout_seconds": COUNT,
    "distributed.collectives": one_of("gloo", "mpi"),
    "gym.roots": names(path=True),
    "gym.tasks": names(TASKS, form=tuple),
    "gym.trained_tasks": names(TASKS, empty=True),
    "gym.trained_sources": TEXT,
    "gym.evidence": FLAG,
    "gym.budget": COUNT,
    "gym.matching": FLAG,
    "gym.invalid_penalty": number(0),
    "verify.rows": COUNT,
    "cross_validate.pairs": COUNT,
    "cross_validate.seed": SEED,
    "pool.workdirs": names(empty=True, path=True),
    "plan.compiler": text_like(targets.NAME, targets.ACCEPTED),
    "plan.steps": names(STEPS, empty=True),
    "plan.budgets": PATH_OR_NONE,
    "plan.write_budgets": FLAG,
    "plan.devices": COUNT,
    "plan.device_memory_gib": number(0),
    "profile.steps": text_like(
        r"(?:(\d{1,9}):(\d{1,9}))?",
        'first:end with first < end, or ""',
        lambda match: not match[0] or int(match[1]) < int(match[2]),
    ),
    "profile.stage": one_of("", *TRAINED),
    "stress.kind": one_of(*KINDS),
    "stress.keep": number(0, 1, open="low"),
    "stress.noise": number(0),
    "stress.seed": SEED,
    "stress.adviser": one_of(*COUNSEL),
}

TRAINING_RULES = {
    "policy.weights": PATH_OR_NONE,
    "policy.shape.*": ANYTHING,  # a config.json; `models.pretrained` checks it
    "policy.lora_rank": whole(0),
    "policy.lora_targets": names(MATRICES, empty=True),
    "policy.lora_scale": number(0, open="low"),
    "policy.scale": number(0, 10_000, open="low"),
    "policy.vocab_size": COUNT,
    "policy.split_digits": FLAG,
    "policy.width": COUNT,
    "policy.layers": COUNT,
    "policy.heads": COUNT,
    "policy.kv_heads": COUNT,
    "policy.head_dim": whole(2),
    "policy.mlp_width": COUNT,
    "policy.short_conv": whole(2, also=0),
    "policy.rope_fraction": SHARE,
    "policy.mimetic": FLAG,
    "policy.scan_unroll": COUNT,
    "policy.attention_block": COUNT,
    "policy.dtype": one_of(*FLOATS),
    "policy.cache_dtype": one_of("", *FLOATS),
    "policy.activations": one_of("", *FLOATS),
    "policy.gradients": one_of(*FLOATS),
    "policy.attention": one_of(*ATTENTIONS),
    "policy.remat": one_of(*REMATS),
    "policy.row_logits": COUNT,
    "policy.full_texts": FLAG,
    "policy.context": whole(2),
    "policy.turn_tokens": COUNT,
    "rollout.cache_block": COUNT,
    "rollout.chunk": COUNT,
    "rollout.cache_doubling": FLAG,
    "rollout.rows": whole(0),
    "rollout.processes": COUNT,
    "rollout.ended_share": number(0, 1, open="low"),
    "rollout.drafts": whole(0, MOST_DRAFTS),
    "curate.distill_pairs": COUNT,
    "curate.synthetic": SHARE,
    "curate.unchanged": SHARE,
    "curate.renamed": SHARE,
    "curate.failing": SHARE,
    "curate.far": SHARE,
    "simulate.reasoning": FLAG,
    "simulate.episodes": COUNT,
    "simulate.softness": number(0, open="low"),
    "simulate.uniform": SHARE,
    "simulate.lookahead": FLAG,
    "simulate.prior": number(0, 1, open="both"),
    "simulate.processes": COUNT,
    "distill.steps": whole(0),
    "distill.batch_rows": COUNT,
    "distill.microbatches": COUNT,
    "distill.row_length": whole(2),
    "distill.dtype": one_of(*FLOATS),
    "distill.save_every": COUNT,
    "grpo.steps": whole(0),
    "grpo.pairs": COUNT,
    "grpo.kept_out": whole(0),
    "grpo.evaluate_every": COUNT,
    "grpo.groups": COUNT,
    "grpo.members": one_of(*MEMBERS),
    "grpo.group_size": COUNT,
    "grpo.share_prefixes": FLAG,
    "grpo.lookahead": FLAG,
    "grpo.baseline": FLAG,
    "grpo.refills": whole(0),
    "grpo.minibatch_rows": COUNT,
    "grpo.microbatches": COUNT,
    "grpo.epochs": COUNT,
    "grpo.synthetic": SHARE,
    "grpo.clip_low": SHARE,
    "grpo.clip_high": number(0),
    "grpo.dual_clip": number(1, open="low", also=0),
    "grpo.ratio": one_of(*RATIOS),
    "grpo.importance_cap": number(0),
    "grpo.mask_truncated": FLAG,
    "grpo.kl_coefficient": number(0),
    "grpo.speech_coefficient": number(0),
    "grpo.entropy_coefficient": number(0),
    "grpo.temperature": number(0, open="low"),
    "grpo.normalisation": one_of(*NORMALISATIONS),
    "grpo.credit": one_of(*CREDITS),
    "grpo.first_turn": whole(1),
    "grpo.off_policy_steps": whole(0, 1),
    "grpo.player_replicas": COUNT,
    "grpo.save_every": COUNT,
    "evaluation.seeds": SEEDS,
    "evaluation.temperature": number(0),
    "evaluation.methods": names(METHODS, empty=True),
    "evaluation.games": COUNT,
    "evaluation.meta_learning": number(0, open="low"),
    "evaluation.processes": COUNT,
    "evaluation.shots": whole(0),
    "evaluation.constrained": FLAG,
}

_WHOLE_LIST, _RATE_LIST = several(COUNT), several(number(0, open="low"))
_MODELS = several(text_like(r"[1-9]\d*x[1-9]\d*", "WIDTHxLAYERS such as 64x2"))
GROUND_TRUTH_RULES = {
    "root": PATH,
    "source": text_like(r"[^./][^/]*", "a name without / and leading dot"),
    "share": text_like(
        r"(\d+)/(\d+)", "i/n with 0 <= i < n", lambda match: int(match[1]) < int(match[2])
    ),
    "levels": names(LEVELS, form=tuple),
    "checkpoint_seconds": number(0),
    "most_noise": number(0),
    "language_model.corpus": text_like(r"stdlib|tfds:.+", "stdlib, or tfds:NAME[/CONFIG]"),
    "language_model.vocab_size": COUNT,
    "language_model.sequence_length": whole(1, 65_534),
    "language_model.dtype": one_of(*FLOATS),
    "language_model.validation_rows": COUNT,
    "architecture.batch_size": COUNT,
    "architecture.rate_times_width": number(0, open="low"),
    **{f"architecture.*.{name}": _WHOLE_LIST for name in ("width", "layers", "heads")},
    **{f"architecture.*.{name}": _WHOLE_LIST for name in ("kv_heads", "mlp_ratio", "tokens")},
    "architecture.*.limits": _WHOLE_LIST,
    "data_mixture.natural.*": number(0, 1, open="low"),
    "data_mixture.head_dim": whole(2),
    "data_mixture.batch_size": COUNT,
    "data_mixture.*.models": _MODELS,
    "data_mixture.*.tokens": _WHOLE_LIST,
    "data_mixture.*.mixtures": whole(2),
    "data_mixture.*.own": whole(0),
    "data_mixture.*.rate_times_width": number(0, open="low"),
    "grpo.setup.dtype": one_of(*FLOATS),
    **{f"grpo.setup.{name}": COUNT for name in ("backbone_batch", "rollout_rows", "epochs")},
    "grpo.setup.minibatch_rows": COUNT,
    "grpo.choices.kl_coefficient": several(number(0)),
    "grpo.choices.group_size": several(whole(2)),
    "grpo.choices.clip_range": _RATE_LIST,
    "grpo.choices.temperature": _RATE_LIST,
    "grpo.*.problems": names(problems.NAMES, form=tuple),
    "grpo.*.backbone_steps.*": COUNT,
    **{f"grpo.*.{name}": COUNT for name in ("width", "layers", "heads")},
    "grpo.*.steps": _WHOLE_LIST,
    "grpo.*.learning_rates": _RATE_LIST,
    "pretraining.head_dim": whole(2),
    "pretraining.*.models": _MODELS,
    "pretraining.*.tokens": _WHOLE_LIST,
    "pretraining.*.learning_rates": _RATE_LIST,
    "pretraining.*.batch_sizes": _WHOLE_LIST,
    **{f"{task}.*.{name}": COUNT for task in TASKS for name in ("seeds", "repeated_every")},
}

OPTIMIZERS = (
    *("distill.optimizer", "grpo.optimizer", "ground_truth.language_model.optimizer"),
    *("ground_truth.grpo.setup.optimizer", "ground_truth.grpo.setup.backbone_optimizer"),
)
RULES: dict[str, Rule] = {
    **JOB_RULES,
    **TRAINING_RULES,
    **{f"ground_truth.{path}": rule for path, rule in GROUND_TRUTH_RULES.items()},
    **{f"{where}.{name}": rule for where in OPTIMIZERS for name, rule in OPTIMIZER.items()},
}


def flatten(values: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every leaf of nested mappings; an empty mapping has none."""
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, path)
        else:
            yield path, value


@functools.cache
def rule_of(path: str) -> Rule | None:
    """Return the rule of a field; None where the field does not exist."""
    if path in RULES:
        return RULES[path]
    for pattern, rule in RULES.items():
        same_depth = pattern.count(".") == path.count(".")
        if "*" in pattern and same_depth and fnmatch.fnmatchcase(path, pattern):
            return rule
    # A config.json nests as it likes.
    return ANYTHING if path.startswith("policy.shape.") else None


def checked(config: ConfigDict) -> ConfigDict:
    """Check every value of a config.

    Returns:
      A copy whose lists of names are comma-separated texts (`gym.tasks` is a tuple), and whose
      paths have no leading `~`.

    Raises:
      UserError: a field is unknown or missing, or its value is none that it accepts.
    """
    config = config.copy_and_resolve_references()
    values = dict(flatten(config.to_dict()))
    for path, rule in RULES.items():
        if "*" not in path and path not in values:
            raise UserError(f"config.{path} is missing; accepted is {rule.accepted}")
    for path, value in values.items():
        rule = rule_of(path)
        if rule is None:
            raise UserError(f"config.{path}: no such field; configs/gym.py has all there are")
        if not rule.holds(value):
            raise UserError(f"config.{path}={_shown(value)}: accepted is {rule.accepted}")
        formed = rule.form(value)
        if formed != value or type(formed) is not type(value):
            *sections, name = path.split(".")
            section = config
            for part in sections:
                section = section[part]
            with section.ignore_type():
                section[name] = formed
    return config


def _shown(value) -> str:
    """Write a value as it would stand behind a flag, in one line of limited length."""
    text = value if isinstance(value, str) and value else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
