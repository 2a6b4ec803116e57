"""Policy distillation: supervised fine-tuning on the agent's own turns.

    1. tokens: each turn is encoded by itself, and its loss mask is made there and then
    2. rows: several conversations a row, as segments, so that little is padding
    3. steps: `training.loop`, on batches that are a function of (seed, step)

Letters: N rows, B rows of a batch, T tokens.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autollm_jax.agent.dialogue import encode_turn
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.errors import UserError
from autollm_jax.models import lora
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.logprobs import token_logprobs
from autollm_jax.text import parsing, prompts
from autollm_jax.text.prompts import Turn
from autollm_jax.training.loop import LoopConfig, train
from autollm_jax.training.masked import masked_sum
from autollm_jax.training.metrics import MetricsWriter
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


_NUMBER = re.compile(r"( ?)-?[0-9.]+")


def interchangeable(tokenizer, conversations: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Find the tokens that conversations copy and that could as well be others.

    Args:
      tokenizer: the policy's.
      conversations: tokens of each.

    Returns:
      Three sets of ids: of numbers behind a space, of the rest of numbers, and of names of a
      mixture's components: what follows a quote but begins no line (as names of dimensions do).
    """
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    numbers = [_NUMBER.fullmatch(text) for text in texts]
    begun = [[i for i, m in enumerate(numbers) if m and bool(m[1]) == space] for space in (1, 0)]
    quotes = {tokenizer.id_of(symbol) for symbol in (prompts.OPENING_QUOTE, prompts.NEXT_QUOTE)}
    lines = {tokenizer.id_of(symbol) for symbol in (prompts.LINE, prompts.LIST, parsing.THINK)}
    lines.add(tokenizer.bos_id)
    behind: dict[bool, set[int]] = {True: set(), False: set()}
    for tokens in conversations:
        for before, token in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True):
            if before in quotes or before in lines:
                behind[before in quotes].add(token)
    names = [token for token in behind[True] - behind[False] if texts[token].isalpha()]
    return [np.array(sorted(ids), int) for ids in (*begun, names)]


def relabel(
    conversations: Sequence[tuple[np.ndarray, np.ndarray]],
    sets: Sequence[np.ndarray],
    share: float,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Exchange tokens within sets, in a share of the conversations, each in its own way.

    What an agent states is copied from the prompt, so it stays right. A policy then learns to copy
    whatever stands there, also numbers and names that it has seldom or never been shown (after
    symbol tuning, Wei et al., arXiv 2305.08298).

    Args:
      conversations: (tokens, loss mask) each.
      sets: ids that may stand for each other, from `interchangeable`.
      share: of the conversations, 0 to 1.
      seed: of the draws.
    """
    random, changed = np.random.default_rng([seed, 2305_08298]), []
    size = 1 + max((int(ids.max()) for ids in sets if len(ids)), default=-1)
    for tokens, mask in conversations:
        if random.random() < share:
            other = np.arange(max(size, int(tokens.max(initial=0)) + 1), dtype=tokens.dtype)
            for ids in sets:
                other[ids] = random.permutation(ids)
            tokens = other[tokens]
        changed.append((tokens, mask))
    return changed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Conversations packed into rows; the attention mask and the loss mask are apart.

    tokens_NT: i32; padding is whatever the tokenizer's is, and is known by its segment alone.
    segments_NT: i32, conversations of a row from 1; 0 is padding.
    positions_NT: i32, position in the token's own conversation.
    loss_mask_NT: bool, tokens whose prediction is learned.
    """

    tokens_NT: np.ndarray
    segments_NT: np.ndarray
    positions_NT: np.ndarray
    loss_mask_NT: np.ndarray


def pack(
    conversations: Sequence[tuple[np.ndarray, np.ndarray]], length: int, pad_id: int
) -> PackedRows:
    """Pack conversations into rows, longest first, each into the fullest row that has room.

    Args:
      conversations: (tokens, loss mask) each, as from `encode_conversation`.
      length: T. A longer conversation loses its end.
      pad_id: fills the rows up; it may be a token that conversations use too.

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
    for row, members in enumerate(rows):
        start = 0
        for segment, i in enumerate(members, start=1):
            tokens, mask = (part[:length] for part in conversations[i])
            place = slice(start, start + len(tokens))
            tokens_NT[row, place], loss_mask_NT[row, place] = tokens, mask
            segments_NT[row, place] = segment
            positions_NT[row, place] = np.arange(len(tokens))
            start += len(tokens)
    return PackedRows(tokens_NT, segments_NT, positions_NT, loss_mask_NT)


def distill(
    model: TransformerConfig,
    config: LoopConfig,
    batch_rows: int,
    optimizer: optax.GradientTransformation,
    rows: PackedRows,
    mesh: Mesh,
    checkpoints: Checkpoints,
    workdir,
    key: jax.Array,
    *,
    validation: PackedRows | None = None,
    params=None,
) -> TrainState:
    """Train a policy to speak as the simulated researcher does; resumes where `checkpoints` stands.

    Args:
      model: the policy's shape.
      config: of the loop.
      batch_rows: rows an update sees.
      optimizer: optax transformation.
      rows: what to learn.
      mesh: parameters and rows are split over it.
      checkpoints: this stage's.
      workdir: where metrics go, as stage `distill`.
      key: randomness of the initial parameters and of the rows' order.
      validation: rows that are scored after the last step.
      params: where to start from, all of the model's; fresh parameters by default.

    Returns:
      The state after the last step, its parameters the policy; with LoRA, its factors.

    Raises:
      UserError: if the loss stops being finite, or the checkpoint's rows are others than these.
    """
    init_key, order_key = jax.random.split(key)
    seed = int(jax.random.bits(order_key))

    def batch_of_step(step):
        return select(rows, batch_order(len(rows.tokens_NT), batch_rows, seed, step))

    trained_already = checkpoints.latest() == config.steps
    frozen, params = ({}, None) if params is None else lora.split(model, params)
    if model.lora_rank and not frozen:
        raise UserError("distillation: LoRA adapts published weights, and there are none")
    state = train(
        functools.partial(lora.init, model),
        lora.logical_axes(model),
        functools.partial(imitation_loss, model),
        optimizer,
        batch_of_step,
        config,
        mesh,
        checkpoints,
        workdir,
        "distill",
        init_key,
        data=_digest(rows),
        tokens_of=lambda batch: int((batch.segments_NT > 0).sum()),
        params=params,
        frozen=frozen,
    )
    if validation is not None and not trained_already:
        scores = score(model, lora.join(frozen, state.params), validation, batch_rows, mesh)
        writer = MetricsWriter(workdir, "distill", first_step=config.steps)
        writer.write(config.steps, {f"validation_{name}": v for name, v in scores.items()})
        writer.close()
    return state


def imitation_loss(model: TransformerConfig, params, batch: PackedRows):
    """Sum the cross-entropy of the tokens to be learned; `training.step`'s loss contract."""
    logprobs_BT, _ = token_logprobs(
        model, params, batch.tokens_NT, batch.segments_NT, batch.positions_NT
    )
    loss, count = masked_sum(-logprobs_BT, batch.loss_mask_NT)
    # Of more than half probability: the likeliest for certain, without a pass over the vocabulary.
    sure_BT = (logprobs_BT > np.log(0.5)).astype(jnp.float32)
    return loss, count, {"accuracy": masked_sum(sure_BT, batch.loss_mask_NT)}


def batch_order(rows: int, batch_rows: int, seed: int, step: int) -> np.ndarray:
    """Choose the rows of one step: a new order each epoch, a function of (seed, step) alone."""
    wanted = np.arange(step * batch_rows, (step + 1) * batch_rows)
    epochs = range(wanted[0] // rows, wanted[-1] // rows + 1)
    orders = [np.random.default_rng([seed, epoch]).permutation(rows) for epoch in epochs]
    return np.concatenate(orders)[wanted - epochs[0] * rows]


def select(rows: PackedRows, chosen: np.ndarray) -> PackedRows:
    """Take some of the rows."""
    return jax.tree.map(lambda x_NT: x_NT[chosen], rows)


def score(model, params, rows: PackedRows, batch_rows: int, mesh: Mesh) -> dict[str, float]:
    """Compute loss and accuracy of the tokens to be learned, over all rows."""
    loss_fn = jax.jit(functools.partial(imitation_loss, model))
    N = len(rows.tokens_NT)
    totals = {"loss": np.zeros(2), "accuracy": np.zeros(2)}
    for start in range(0, N, batch_rows):
        batch = select(rows, np.arange(start, start + batch_rows) % N)
        new_B1 = (np.arange(start, start + batch_rows) < N)[:, None]
        batch = dataclasses.replace(batch, loss_mask_NT=batch.loss_mask_NT & new_B1)
        with jax.set_mesh(mesh):
            loss, count, metrics = loss_fn(params, batch)
        totals["loss"] += np.array([loss, count])
        totals["accuracy"] += np.array(metrics["accuracy"])
    return {name: float(total / max(count, 1.0)) for name, (total, count) in totals.items()}


def _digest(rows: PackedRows) -> str:
    """Hash the rows, so that a resumed run knows them again."""
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(rows):
        whole.update(np.ascontiguousarray(leaf).tobytes())
    return whole.hexdigest()[:16]
