"""Policy distillation: supervised fine-tuning on the simulated teacher's turns.

    1. tokens: each turn is encoded by itself, together with its loss mask
    2. rows: several conversations share a row, as segments, so that little is padding
    3. steps: `training.loop`, on batches that are a function of (seed, step)

Letters: N rows, B rows of a batch, T tokens.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autollm_jax.agent.dialogue import encode_turn, panel_ids
from autollm_jax.errors import UserError
from autollm_jax.models import lora
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.batches import scored_places
from autollm_jax.rl.logprobs import choice_logprobs, hidden_states, score_tokens
from autollm_jax.text.prompts import Turn
from autollm_jax.training.flops import without_recomputation
from autollm_jax.training.loop import Learner, LoopConfig, Site, Stream, train
from autollm_jax.training.masked import masked_sum
from autollm_jax.training.state import TrainState


def encode_conversation(tokenizer, turns: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
    """Encode a conversation turn by turn.

    Returns:
      tokens_T (i32) and loss_mask_T (bool), which is set on the turns to be learned.
    """
    tokens, mask = [], []
    for number, turn in enumerate(turns):
        ids = encode_turn(tokenizer, turn, opens=number == 0)
        tokens += ids
        mask += [turn.learned] * len(ids)
    return np.asarray(tokens, np.int32), np.asarray(mask, bool)


# The places of a conversation's choices, and the chances [P] that its author gave each panel.
Choices = list[tuple[int, np.ndarray]]


def choices_of(tokenizer, turns: Sequence[Turn]) -> Choices:
    """Find where the agent's turns name the panel that they trust; none if that takes tokens."""
    ids_P, found, start = panel_ids(tokenizer), [], 0
    for number, turn in enumerate(turns):
        tokens = np.array(encode_turn(tokenizer, turn, opens=number == 0))
        if turn.chances and ids_P is not None:
            places = np.flatnonzero(np.isin(tokens, ids_P))
            found += [(start + int(place), np.array(turn.chances)) for place in places[-1:]]
        start += len(tokens)
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chances:
    """The choices of rows; J a row at most, filled up with place 0.

    place_NJ: i32, where a choice stands.
    chance_NJP: f32, how likely the author was to choose each panel.
    id_NP: i32, the token of each panel, the same in every row.
    """

    place_NJ: np.ndarray
    chance_NJP: np.ndarray
    id_NP: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Conversations packed into rows; the attention mask and the loss mask are apart.

    tokens_NT: i32; padding is whatever the tokenizer's is, and is known by its segment alone.
    segments_NT: i32, conversations of a row from 1; 0 is padding.
    positions_NT: i32, position in the token's own conversation.
    loss_mask_NT: bool, tokens whose prediction is learned.
    chances: choices whose whole distribution is learned; None where none is known.
    place_NM: i32, places of the loss mask's tokens, from `rl.batches.scored_places`.
    """

    tokens_NT: np.ndarray
    segments_NT: np.ndarray
    positions_NT: np.ndarray
    loss_mask_NT: np.ndarray
    chances: Chances | None = None
    place_NM: np.ndarray | None = None


def pack(
    conversations: Sequence[tuple[np.ndarray, np.ndarray]],
    length: int,
    pad_id: int,
    choices: Sequence[Choices] = (),
    id_P: np.ndarray | None = None,
) -> PackedRows:
    """Pack conversations into rows, longest first, each into the fullest row that has room.

    Args:
      conversations: (tokens, loss mask) each, as from `encode_conversation`.
      length: T. A longer conversation loses its end.
      pad_id: fills the rows up; it may be a token that conversations use too.
      choices: of each conversation, from `choices_of`; their tokens leave the loss mask.
      id_P: the token of each panel; with it there are `choices`.

    Raises:
      UserError: if there is nothing to learn.
    """
    if not any(mask[:length].any() for _, mask in conversations):
        raise UserError("distillation: no conversation has a turn to learn from")
    order = sorted(range(len(conversations)), key=lambda i: -len(conversations[i][0]))
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> rows
    for i in order:
        size = min(len(conversations[i][0]), length)
        room = next((r for r in range(size, length) if with_room.get(r)), None)
        if room is None:
            row, room = len(rows), length
            rows.append([])
        else:
            row = with_room[room].pop()
        rows[row].append(i)
        with_room.setdefault(room - size, []).append(row)
    tokens_NT = np.full((len(rows), length), pad_id, np.int32)
    segments_NT, positions_NT = (np.zeros_like(tokens_NT) for _ in range(2))
    loss_mask_NT = np.zeros_like(tokens_NT, bool)
    made: list[Choices] = [[] for _ in rows]
    for row, members in enumerate(rows):
        start = 0
        for segment, i in enumerate(members, start=1):
            tokens, mask = (part[:length] for part in conversations[i])
            place = slice(start, start + len(tokens))
            tokens_NT[row, place], loss_mask_NT[row, place] = tokens, mask
            segments_NT[row, place] = segment
            positions_NT[row, place] = np.arange(len(tokens))
            if id_P is not None:
                made[row] += [(start + p, c) for p, c in choices[i] if p < len(tokens)]
            start += len(tokens)
    chances = None if id_P is None else _chances(made, id_P, loss_mask_NT)
    place_NM = scored_places(loss_mask_NT)
    return PackedRows(tokens_NT, segments_NT, positions_NT, loss_mask_NT, chances, place_NM)


def _chances(made: Sequence[Choices], id_P: np.ndarray, loss_mask_NT: np.ndarray) -> Chances:
    """Lay the rows' choices out, and take their tokens out of the loss mask."""
    N, J, P = len(made), max(map(len, made)), len(id_P)
    place_NJ, chance_NJP = np.zeros((N, J), np.int32), np.zeros((N, J, P), np.float32)
    for row, choices in enumerate(made):
        for j, (place, chance_P) in enumerate(choices):
            place_NJ[row, j], chance_NJP[row, j] = place, chance_P
            loss_mask_NT[row, place] = False
    return Chances(place_NJ, chance_NJP, np.broadcast_to(id_P.astype(np.int32), (N, P)))


def distill(
    model: TransformerConfig,
    config: LoopConfig,
    batch_rows: int,
    optimizer: optax.GradientTransformation,
    rows: PackedRows,
    site: Site,
    key: jax.Array,
    *,
    params=None,
) -> TrainState:
    """Train a policy to imitate the simulated teacher; resumes from the newest checkpoint.

    Args:
      model: the policy's shape.
      config: of the loop.
      batch_rows: rows that an update sees.
      optimizer: optax transformation.
      rows: the rows to learn.
      site: mesh, checkpoints and work directory; metrics go under stage `distill`.
      key: randomness of the initial parameters and of the rows' order.
      params: initial parameters, all of the model's; fresh ones by default.

    Returns:
      The state after the last step, its parameters the policy; with LoRA, its factors.

    Raises:
      UserError: the loss is not finite, the checkpoint's rows are others than these, or LoRA has no
        published weights to adapt.
    """
    init_key, order_key = jax.random.split(key)
    seed = int(jax.random.bits(order_key))

    def batch_of_step(step):
        return select(rows, batch_order(len(rows.tokens_NT), batch_rows, seed, step))

    frozen, params = ({}, None) if params is None else lora.split(model, params)
    if model.lora_rank and not frozen:
        raise UserError("distillation: LoRA adapts published weights, and there are none")
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    loss_fn = functools.partial(imitation_loss, model)
    counted_fn = functools.partial(imitation_loss, without_recomputation(model))
    stream = Stream(batch_of_step, lambda batch: int((batch.segments_NT > 0).sum()), _digest(rows))
    learner = Learner("distill", init, axes, loss_fn, optimizer, counted_fn)
    return train(learner, stream, config, site, init_key, params=params, frozen=frozen)


def imitation_loss(model: TransformerConfig, params, batch: PackedRows):
    """Sum the cross-entropy of the tokens to be learned; `training.step`'s loss contract.

    A choice counts as one token, whose target is the distribution that it was drawn from.
    """
    rows = batch.tokens_NT, batch.positions_NT, batch.segments_NT
    x_BTD = hidden_states(model, params, *rows)
    logprobs_BT, _ = score_tokens(model, params, x_BTD, batch.tokens_NT, place_BM=batch.place_NM)
    loss, count = masked_sum(-logprobs_BT, batch.loss_mask_NT)
    # Of more than half probability: the likeliest for certain, without a pass over the vocabulary.
    sure_BT = (logprobs_BT > np.log(0.5)).astype(jnp.float32)
    metrics = {"accuracy": masked_sum(sure_BT, batch.loss_mask_NT)}
    if batch.chances is not None:
        made = batch.chances
        log_BJP = choice_logprobs(model, params, x_BTD, made.place_NJ, made.id_NP)
        chosen_BJ = -(made.chance_NJP * log_BJP).sum(-1)
        of_choices, choices = masked_sum(chosen_BJ, made.place_NJ > 0)
        entropy_BJ = -(jnp.exp(log_BJP) * log_BJP).sum(-1)
        metrics["decision_loss"] = of_choices, choices
        metrics["decision_entropy"] = masked_sum(entropy_BJ, made.place_NJ > 0)
        loss, count = loss + of_choices, count + choices
    return loss, count, metrics


def batch_order(rows: int, batch_rows: int, seed: int, step: int) -> np.ndarray:
    """Choose the rows of one step: a new order each epoch, a function of (seed, step) alone."""
    wanted = np.arange(step * batch_rows, (step + 1) * batch_rows)
    epochs = range(wanted[0] // rows, wanted[-1] // rows + 1)
    orders = [np.random.default_rng([seed, epoch]).permutation(rows) for epoch in epochs]
    return np.concatenate(orders)[wanted - epochs[0] * rows]


def select(rows: PackedRows, chosen: np.ndarray) -> PackedRows:
    """Take some of the rows."""
    return jax.tree.map(lambda x_NT: x_NT[chosen], rows)


def _digest(rows: PackedRows) -> str:
    """Hash the rows, so that a resumed run knows them again."""
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(rows):
        whole.update(np.ascontiguousarray(leaf).tobytes())
    return whole.hexdigest()[:16]
