"""Grammars: what a row may say in a turn, as a deterministic automaton over tokens.

A turn is free text between two symbols and then one of several endings, or an ending alone:

    start --open--> free text (tokens of `free_V`, any number) --close--> root
    start or root --an ending's tokens--> ... --its last token, the stop token

A symbol is one token or, in a vocabulary that does not know it, several. Where the opening symbol
begins as an ending does, each turn has free text.

`build` makes an automaton of its endings once; `join` lays those of a batch's rows side by side,
with the endings that each row may take in this turn. What is below `join` is traced: the sampler
carries each row's node through its loop, and leaves a distribution only the tokens that lead on.

Letters: B rows, V vocabulary, N nodes and E edges (of all the automata of a `Grammar`), M nodes of
its largest automaton, K edges considered of a node, R endings, L tokens of the longest one.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

START, FREE, ROOT = 0, 1, 2  # the nodes before those of the endings
LEAST_NODES = 256
LEAST_EDGES = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """One automaton, on the host; the edges of a node stand together.

    first_N: i32, a node's first edge.
    count_N: i32, its number of edges; free text, which stays where it is, has none.
    token_E, child_E: i32, an edge's token and the node that it leads to.
    path_RL: i32, the nodes that an ending passes; filled up with START.
    length_R: i32, tokens of an ending.
    inside_C: i32, the nodes inside the two symbols.
    opening, closing: tokens of the symbols around free text.
    """

    first_N: np.ndarray
    count_N: np.ndarray
    token_E: np.ndarray
    child_E: np.ndarray
    path_RL: np.ndarray
    length_R: np.ndarray
    inside_C: np.ndarray
    opening: int
    closing: int


def build(
    endings: Sequence[Sequence[int]], opening: Sequence[int], closing: Sequence[int]
) -> Automaton:
    """Make the automaton of a turn with one of these endings.

    Args:
      endings: token ids, at least one; none begins another, as where each ends with the stop token.
      opening: the tokens before free text.
      closing: the tokens behind it; free text has none that is its first.
    """
    length_R = np.array([len(ending) for ending in endings], np.int32)
    tokens_RL = np.full((len(endings), length_R.max()), -1, np.int32)
    for row, ending in enumerate(endings):
        tokens_RL[row, : len(ending)] = ending
    # In sorted order, an ending shares nodes with the one before it as far as both agree.
    order_R = np.lexsort(tokens_RL.T[::-1])
    tokens_RL = tokens_RL[order_R]
    new_RL = np.ones_like(tokens_RL, bool)
    new_RL[1:] = np.logical_or.accumulate(tokens_RL[1:] != tokens_RL[:-1], axis=1)
    new_RL &= tokens_RL >= 0
    # Numbered level by level, the children of a node are neighbours, and so are their edges.
    node_RL = ROOT + np.cumsum(new_RL.T).reshape(new_RL.T.shape).T.astype(np.int32)
    parent_RL = np.concatenate([np.full((len(endings), 1), ROOT), node_RL[:, :-1]], axis=1)
    token_E, child_E, parent_E = (x_RL.T[new_RL.T] for x_RL in (tokens_RL, node_RL, parent_RL))
    first = parent_E == ROOT
    if opening[0] in token_E[first]:
        first = np.zeros_like(first)
    path_RL = np.full_like(node_RL, START)
    path_RL[order_R] = np.where(tokens_RL >= 0, node_RL, START)
    # The nodes inside the symbols come behind those of the endings, each with its one edge.
    nodes = ROOT + 1 + len(child_E)
    within = len(opening) - 1, len(closing) - 1
    inside_C = nodes + np.arange(sum(within), dtype=np.int32)
    to_free = [*inside_C[: within[0]], FREE]
    to_root = [*inside_C[within[0] :], ROOT]
    count_N = np.bincount(parent_E, minlength=nodes).astype(np.int32)
    count_N[[START, FREE]] = 1 + first.sum(), 1
    count_N = np.concatenate([count_N, np.ones_like(inside_C)])
    token_E = [opening[:1], token_E[first], closing[:1], token_E, opening[1:], closing[1:]]
    child_E = [to_free[:1], child_E[first], to_root[:1], child_E, to_free[1:], to_root[1:]]
    return Automaton(
        first_N=(np.cumsum(count_N) - count_N).astype(np.int32),
        count_N=count_N,
        token_E=np.concatenate(token_E).astype(np.int32),
        child_E=np.concatenate(child_E).astype(np.int32),
        path_RL=path_RL,
        length_R=length_R,
        inside_C=inside_C,
        opening=len(opening),
        closing=len(closing),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grammar:
    """The automata of a batch, and what each row may do in this turn.

    first_N, count_N, token_E, child_E: as in `Automaton`, one automaton after the other.
    free_V: bool, tokens of free text.
    base_B: i32, the first node of a row's automaton; -1 where the row may say anything.
    alive_BM: bool, nodes of its automaton from which the row reaches an ending that it may take.
    ending_B: i32, tokens of the longest such ending and of the symbol that closes free text.
    opening_B: i32, tokens of the symbol that opens it.
    fan_out: K, at least the most edges of a node.
    """

    first_N: np.ndarray
    count_N: np.ndarray
    token_E: np.ndarray
    child_E: np.ndarray
    free_V: np.ndarray
    base_B: np.ndarray
    alive_BM: np.ndarray
    ending_B: np.ndarray
    opening_B: np.ndarray
    fan_out: int = dataclasses.field(metadata={"static": True})

    @property
    def shortest_B(self) -> np.ndarray:
        """Tokens that a turn needs at least, whichever ending it takes; 0 where there is none."""
        return np.asarray(self.opening_B) + np.asarray(self.ending_B)


def join(rows: Sequence[tuple[Automaton, np.ndarray] | None], free_V: np.ndarray) -> Grammar:
    """Lay the rows' automata side by side, each once, in arrays of few different sizes.

    Args:
      rows: for each row its automaton and the endings [R] that it may take, at least one; None
        where it may say anything.
      free_V: tokens of free text: not the symbol that closes it, nor the stop token.
    """
    automata = list(dict.fromkeys(row[0] for row in rows if row is not None))
    sizes = [len(automaton.count_N) for automaton in automata]
    bases = dict(zip(automata, np.cumsum([0, *sizes[:-1]]).tolist(), strict=False))
    edges = np.cumsum([0] + [len(a.token_E) for a in automata])
    fan_out = bucket(max((a.count_N.max() for a in automata), default=0), LEAST_EDGES)
    N, E = bucket(sum(sizes), LEAST_NODES), bucket(edges[-1] + fan_out, LEAST_NODES)
    B, M = len(rows), bucket(max(sizes, default=0), LEAST_NODES)
    base_B, ending_B, opening_B = np.full(B, -1, np.int32), *np.zeros((2, B), np.int32)
    alive_BM = np.zeros((B, M), bool)
    for number, row in enumerate(rows):
        if row is not None:
            automaton, may_R = row
            base_B[number] = bases[automaton]
            ending_B[number] = automaton.closing + automaton.length_R[may_R].max()
            opening_B[number] = automaton.opening
            alive_BM[number, [START, FREE, ROOT, *automaton.inside_C]] = True
            alive_BM[number, automaton.path_RL[may_R].ravel()] = True
    return Grammar(
        first_N=_padded([a.first_N + e for a, e in zip(automata, edges, strict=False)], N),
        count_N=_padded([a.count_N for a in automata], N),
        token_E=_padded([a.token_E for a in automata], E),
        child_E=_padded([a.child_E + bases[a] for a in automata], E),
        free_V=free_V,
        base_B=base_B,
        alive_BM=alive_BM,
        ending_B=ending_B,
        opening_B=opening_B,
        fan_out=fan_out,
    )


def steps(
    automaton: Automaton, may_R: np.ndarray, tokens: Sequence[int], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Say again what a row could say at each token of a turn, for a trainer.

    Args:
      automaton: of the turn.
      may_R: the endings that it could take.
      tokens: T of them, as sampled under the grammar.
      most: tokens that the turn could have at most, as `sampler.generate` counts them.

    Returns:
      free_T, bool: whether free text was allowed; and token_TK, i32: the tokens allowed besides,
      filled up with -1.
    """
    alive = {START, FREE, ROOT, *automaton.inside_C.tolist()}
    alive.update(automaton.path_RL[may_R].ravel().tolist())
    ending = automaton.closing + automaton.length_R[may_R].max()
    free_T = np.zeros(len(tokens), bool)
    token_TK = np.full((len(tokens), LEAST_EDGES), -1, np.int32)
    node = START
    for t, token in enumerate(tokens):
        edges = slice(automaton.first_N[node], automaton.first_N[node] + automaton.count_N[node])
        ways = {
            int(token): int(child)
            for token, child in zip(automaton.token_E[edges], automaton.child_E[edges], strict=True)
            if int(child) in alive
        }
        free_T[t] = node == FREE and most - t > ending
        token_TK[t, : len(ways)] = list(ways)
        node = ways.get(int(token), node)
    return free_T, token_TK


def bucket(size: int, least: int) -> int:
    """Round up to a power of two, so that few sizes are compiled for."""
    return max(1 << max(int(size) - 1, 0).bit_length(), least)


def _padded(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    whole = np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
    return np.pad(whole, (0, size - len(whole)))


def edges(grammar: Grammar, node_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return each row's ways on: token_BK (V where there is no edge, or a dead one), child_BK."""

    def of_row(node, base, alive_M):
        node = jnp.maximum(node, 0)
        places_K = jnp.arange(grammar.fan_out)
        edge_K = grammar.first_N[node] + places_K
        child_K = grammar.child_E[edge_K]
        open_K = (places_K < grammar.count_N[node]) & alive_M[child_K - base]
        return jnp.where(open_K, grammar.token_E[edge_K], len(grammar.free_V)), child_K

    grammar = jax.tree.map(jnp.asarray, grammar)
    return jax.vmap(of_row)(node_B, grammar.base_B, grammar.alive_BM)


def allowed(
    grammar: Grammar, node_B: jax.Array, token_BK: jax.Array, left_B: jax.Array
) -> jax.Array:
    """Return which tokens may come next [B, V].

    Args:
      grammar: the rows'.
      node_B: where they are.
      token_BK: from `edges`.
      left_B: how many tokens the turn may still have. Free text goes on only as long as the longest
        ending fits behind it.
    """
    free_V = jnp.asarray(grammar.free_V)

    def of_row(token_K, is_free, is_open):
        edge_V = jnp.zeros_like(free_V).at[token_K].set(True, mode="drop")
        return edge_V | (free_V & is_free) | is_open

    is_free_B = (node_B - grammar.base_B == FREE) & (left_B > grammar.ending_B)
    return jax.vmap(of_row)(token_BK, is_free_B, node_B < 0)


def advance(
    node_B: jax.Array, token_BK: jax.Array, child_BK: jax.Array, token_B: jax.Array
) -> jax.Array:
    """Return where the rows are after these tokens; free text, and rows without a grammar, stay."""
    taken_BK = token_BK == token_B[:, None]
    child_B = jnp.take_along_axis(child_BK, jnp.argmax(taken_BK, axis=1)[:, None], axis=1)[:, 0]
    return jnp.where(taken_BK.any(axis=1) & (node_B >= 0), child_B, node_B)
