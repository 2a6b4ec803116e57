"""One answer of a policy to one conversation, without a batch, a cache or a mesh.

The sampler plays hundreds of games side by side; a person asks one question. A forward pass of the
whole conversation for each token is then quicker than to compile the sampler.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.agent.dialogue import encode_turn, panel_ids
from autollm_jax.agent.rollout import Policy
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.text.prompts import Turn

LENGTHS = (256, 512)  # conversations are padded to these, then to the context


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a policy says.

    Attributes:
      text: its turn.
      chances: how likely it was to trust each panel [P]; empty where it names none.
    """

    text: str
    chances: np.ndarray


def answer(policy: Policy, turns: Sequence[Turn], context: int, most: int) -> Answer:
    """Let a policy take the next turn, greedily.

    Args:
      policy: with an own vocabulary.
      turns: of the conversation; the last is the environment's.
      context: tokens of a whole conversation.
      most: tokens of the answer.

    Raises:
      UserError: the conversation is longer than the context.
    """
    tokenizer, tokens = policy.tokenizer, []
    for number, turn in enumerate(turns):
        tokens += encode_turn(tokenizer, turn, opens=number == 0)
    if len(tokens) + most > context:
        raise UserError(
            f"the conversation has {len(tokens)} tokens, and this agent reads {context - most} at "
            "most; ask it about fewer trials"
        )
    size = next((n for n in LENGTHS if n >= len(tokens) + most), context)
    ids_P, chances_P, start = panel_ids(tokenizer), np.zeros(0), len(tokens)
    while len(tokens) < start + most:
        row_1S = np.zeros((1, size), np.int32)
        row_1S[0, : len(tokens)] = tokens
        logits_V = np.asarray(_next(policy.model, policy.params, row_1S, len(tokens) - 1))
        token = int(logits_V.argmax())
        if ids_P is not None and token in ids_P:  # the last panel that is named is the trusted one
            weights_P = np.exp(logits_V[ids_P] - logits_V[ids_P].max())
            chances_P = weights_P / weights_P.sum()
        tokens.append(token)
        if token == tokenizer.stop_id:
            break
    return Answer(tokenizer.decode(tokens[start:]), chances_P)


@functools.partial(jax.jit, static_argnames="model")
def _next(model: transformer.TransformerConfig, params, row_1S, place):
    """Return the logits [V] of the token after a place."""
    x_1SD = transformer.hidden(model, params, row_1S)
    x_11D = jax.lax.dynamic_slice_in_dim(x_1SD, place, 1, axis=1)
    return transformer.unembed(model, params, x_11D)[0, 0].astype(jnp.float32)
