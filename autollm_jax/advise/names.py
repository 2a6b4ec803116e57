"""Names of columns: which fidelity, prefix or unit they say, and what they are usually called."""

import re
from collections.abc import Iterable

from autollm_jax.advise.values import COUNTS

FIDELITIES = ("parameters", "tokens", "flops", "steps", "epochs", "hours")
PREFIXES = ("config/", "config.", "params.", "params_", "hparams/", "hparams.", "hyperparameters.")
_NAMES = {  # name of a fidelity -> what columns that hold it are called
    "parameters": r"(n|num|nr|model|total|non_?embedding)?_?(param(eter)?s|params?_?count|"
    r"model_?size|size)(_?(total|count|non_?emb\w*))?|n|n_?non_?emb\w*",
    "tokens": r"(n|d|num|total|train(ing)?)?_?tok(en)?s?(_?(seen|total|trained|count|budget))?|d",
    "flops": r"(total|train(ing)?)?_?(flops?|compute|c)(_?(total|budget))?",
    "steps": r"(n|num|max|total|train(ing)?|global)?_?(steps?|iter(ation)?s?|updates)"
    r"(_?(total|count|budget))?",
    "epochs": r"(n|num|max|total)?_?epochs?",
    "hours": r"(gpu|device|tpu|wall|train(ing)?)?_?(clock|time)?_?"
    r"(hours?|hrs?|h|days|time_?budget)",
}
STATUS = r"status|state|outcome_?status|run_?state|result"
STATUSES = {  # how runs end, and what trackers call it
    "ok": r"ok|finished|complete[d]?|done|success(ful)?|succeeded|true|1|passed|terminated",
    "diverged": r"diverged|nan|exploded|unstable|pruned|early_?stopped",
    "infeasible": r"infeasible|oom|out_?of_?memory|cuda_?oom|too_?large|over_?limit",
    "failed": r"fail(ed|ure)?|crash(ed)?|error(ed)?|killed|preempted|lost|false|0|timeout|aborted",
    "running": r"running|pending|queued|waiting|scheduled|started|alive",
}
YES, NO = ("true", "yes", "y", "t", "1", "1_0"), ("false", "no", "n", "f", "0", "0_0")
SEED = r"(random_?|rng_?|torch_?|np_?)?seed|random_?state|repeat|replicate|rep"
LABEL = (
    r"(run_?|trial_?|job_?|exp(eriment)?_?)?(id|name|nr|no|number|index|#|url|path|dir|host|user|"
    r"notes?|tags?|group|commit|sha|hash|date|time|timestamp|created(_?at)?|started|ended|start|end|"
    r"comment)|experiment|run|trial|job|sweep|project|_\w+|column\d+|unnamed.*|"
    r".*_?(date|timestamp)|source|task|notes?"
)
BENCHMARKS = (
    r"hella_?swag|mmlu|piqa|wino_?grande|gsm_?8k|human_?eval|mbpp|bool_?q|lambada|"
    r"[a-z]+_?qa(?![a-z])|(?<![a-z])arc(?![a-z])|(?<![a-z])bbh(?![a-z])"
)
MEASURED = (
    r".*(loss|perplexity|ppl|accuracy|acc|error|err|score|reward|success|return|bpb|bits|nll|f1|bleu|"
    r"rouge|auc|mfu|throughput|per_?sec(ond)?|speed|latency|memory|mem|vram|runtime|duration|seconds|"
    rf"elapsed|wall|grad_?norm|kl|entropy|gpu_?util|hours|{BENCHMARKS}).*"
)
MAXIMISED = (
    r"acc|score|reward|success|return|f1|bleu|rouge|auc|mfu|throughput|per_?sec|speed|win|pass|"
    rf"{BENCHMARKS}"
)
USUAL = (  # hyperparameters whose names would else be taken for something measured
    r".*(learning_?rate|lr|batch|decay|warm_?up|momentum|beta|eps|dropout|width|depth|layers?|heads?|"
    r"hidden|dim|d_model|rank|alpha|gamma|temperature|group_?size|clip|coef(ficient)?|penalty|weight|"
    r"schedule|optimi[sz]er|kl_coef\w*|ratio|init|norm_?type|activation|vocab|context|seq_?len\w*).*"
)
VALIDATION = r"val|valid|eval|test|held"
BATCH = r"(.*_)?(batch(_?size)?|bs|bsz)(_.*)?"
LOG_NAMES = r".*(learning_?rate|lr|decay|eps|batch|coef).*"


def stripped(name: str) -> str:
    """Take the prefix off that trackers put before hyperparameters."""
    if name in ("params_K", "params_M", "params_B"):  # a count of parameters, not Optuna's prefix
        return name
    for prefix in PREFIXES:
        if name.lower().startswith(prefix) and len(name) > len(prefix):
            return name[len(prefix) :]
    return name


def plainly(name: str) -> str:
    """Spell a name in lower case with underscores: trainTokens, "train tokens", train/tokens."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    name = re.sub(r"\(.*?\)|\[.*?\]", "", name)
    return re.sub(r"[^a-z0-9#]+", "_", name.lower()).strip("_")


def status_of(text: str) -> str:
    """Return the status, one of STATUSES, that a cell says; "" if it says none."""
    text = plainly(text)
    return next((status for status, said in STATUSES.items() if re.fullmatch(said, text)), "")


def flagged_status(name: str, cells: Iterable[str]) -> str:
    """Return the status that a column of yes and no tells, such as `diverged` or `is_oom`.

    >>> flagged_status("is_oom", ["False", "True"]), flagged_status("state", ["ok", "oom"])
    ('infeasible', '')
    """
    if not {plainly(cell) for cell in cells} <= {*YES, *NO}:
        return ""
    return status_of(re.sub(r"^(is|has|did|was|run)_", "", plainly(name)))


def fidelity_of(name: str) -> str:
    """Return the fidelity that a name means, such as n_params or trainTokens; "" if it is none."""
    return meant_fidelity(plainly(name))


def meant_fidelity(plain: str) -> str:
    """Return the fidelity of a name in plain spelling; "" if it is none."""
    return next((key for key, names in _NAMES.items() if re.fullmatch(names, plain)), "")


def counted_fidelity(name: str) -> str:
    """Return the fidelity of a name that had a unit of counts: Model (M) has parameters."""
    plain = plainly(name)
    return "parameters" if plain == "model" else meant_fidelity(plain)


def unit_of(name: str) -> tuple[str, float]:
    """Split the unit off a name: ("tokens", 1e9) of tokens_B or tokens (billions); 0 for none."""
    found = re.fullmatch(
        r"(.+?)(?:\s*[(\[]\s*(?:in )?(\w+)\s*[)\]]|[_ ](?:in[_ ])?([a-z]+))", name, re.I
    )
    if not found:
        return name, 0.0
    unit = (found[2] or found[3]).lower()
    return found[1], COUNTS.get(unit) or COUNTS.get(unit.removesuffix("s")) or 0.0
