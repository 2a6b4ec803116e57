"""A trained agent as a folder of three files, to be shipped and asked without a work directory.

agent.json           the policy's shape, the size of its context, its texts, its provenance
params.safetensors   its parameters
tokenizer.model      its vocabulary
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialize

from autollm_jax.agent.dialogue import PolicyTokenizer
from autollm_jax.agent.rollout import Policy
from autollm_jax.errors import UserError
from autollm_jax.files import write_atomic, write_json_atomic
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.text.symbols import PANELS

AGENT, PARAMS, TOKENIZER = "agent.json", "params.safetensors", "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class PortableAgent:
    """An agent that was read from its folder.

    Attributes:
      policy: shape, parameters, tokenizer.
      context: tokens of a whole episode.
      turn_tokens: most tokens of a turn.
      budget: trials of the episodes that it was trained on.
      full: whether it reads full texts.
      provenance: how it was made, by name.
    """

    policy: Policy
    context: int
    turn_tokens: int
    budget: int
    full: bool
    provenance: Mapping


def save(folder: Path, agent: PortableAgent) -> None:
    """Write an agent's folder.

    Args:
      folder: to write to; it is made.
      agent: of an own vocabulary.

    Raises:
      UserError: the policy started from published weights, which come with a licence of their own.
    """
    policy = agent.policy
    if not isinstance(policy.tokenizer, PolicyTokenizer):
        raise UserError(
            "an agent of published weights is not exported; accepted is a policy with a vocabulary "
            "of its own (config.policy.weights empty)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(jax.tree.map(np.asarray, policy.params), sep="/")
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in flat.items()}
    write_atomic(folder / PARAMS, serialize(arrays))
    write_atomic(folder / TOKENIZER, policy.tokenizer.model)
    fields = dataclasses.asdict(agent) | {"model": dataclasses.asdict(policy.model)}
    del fields["policy"]
    del fields["model"]["slots_first"]  # which is the exporting machine's
    write_json_atomic(folder / AGENT, fields | {"panels": PANELS})


def load(folder: Path) -> PortableAgent:
    """Read an agent's folder.

    Raises:
      UserError: a file is missing or damaged, or the agent knows other advisers.
    """
    try:
        fields = json.loads((folder / AGENT).read_text())
        flat = load_file(folder / PARAMS)
        tokenizer = PolicyTokenizer((folder / TOKENIZER).read_bytes())
        model = TransformerConfig(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.pop("model").items()}
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder}: no agent ({error}); accepted is a folder with {AGENT}, {PARAMS} and "
            f"{TOKENIZER}, as launch/export_agent.py writes it"
        ) from error
    if tuple(fields.pop("panels")) != PANELS:
        raise UserError(
            f"{folder}: this agent was trained with other advisers; export it again with this "
            "version, or install the version that made it"
        )
    policy = Policy(model, unflatten_dict(flat, sep="/"), tokenizer)
    return PortableAgent(policy, **fields)
