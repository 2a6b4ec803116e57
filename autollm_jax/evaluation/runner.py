"""Plays every method on every held-out experiment, on equal terms, and writes the results.

1. Make the games: one episode for each experiment and seed, the same for every method. Only this
   module makes them, so evidence, default, budget and matching cannot differ.
2. Let each player play its games; check that each was ended.
3. Write the player's part under parts/, keyed by a digest of what it depends on. A player whose
   part is there already is not played again.
4. Join the parts to results.parquet and transcripts.jsonl.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from autollm_jax.baselines.base import Method, Problem
from autollm_jax.baselines.learned import Learned
from autollm_jax.cluster import distributed
from autollm_jax.errors import UserError
from autollm_jax.files import package_digest, write_atomic
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.splits import Split, evidence_for
from autollm_jax.gym.stress import Stress, distort
from autollm_jax.gym.tables import find_tables

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("source", pa.string()),
        ("experiment", pa.string()),
        ("fidelity", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("trial", pa.int64()),
        ("config", pa.string()),
        ("outcome", pa.float64()),
        ("status", pa.string()),
        ("regret", pa.float64()),
        ("regret_minmax", pa.float64()),
        ("valid", pa.bool_()),
        ("matched", pa.bool_()),
    ]
)
# Part of every digest: raise it where games or rows change their meaning.
VERSION = 2


@dataclass(frozen=True)
class Game:
    """One episode to be played, and the seed to play it with."""

    episode: Episode
    seed: int


# What is kept of a game besides its trials: its text, or a mapping of JSON values, `text` and
#   claims: per turn, counts of what its thinking states (`agent.claims.Audit`);
#   evidence_flops: what the game's own cheap runs cost, for a method that is not given any.
Transcript = str | Mapping
# A player plays each game to its end. It may return one transcript a game, in their order; it may
# carry `identity: str`, all that its play depends on besides the games (a checkpoint's hash), and
# `together: bool`, that it plays in all processes; of the others process 0 alone does.
Player = Callable[[Sequence[Game]], Sequence[Transcript] | None]


@dataclass(frozen=True)
class MethodPlayer:
    """Plays a baseline: asks it, runs what it says, tells it what came of it."""

    method: Callable[[Problem, int], Method]

    @property
    def identity(self) -> str:
        """Name the code, and what was learned: with another package a method plays again."""
        if isinstance(self.method, Learned):
            return self.method.digest
        return package_digest()

    def __call__(self, games: Sequence[Game]) -> list[Transcript] | None:
        spent = []
        for game in games:
            episode = game.episode
            problem = Problem(episode.setting, episode.evidence, episode.budget)
            method = self.method(problem, game.seed)
            while not episode.done:
                method.tell(episode.exec_config(method.ask()))
            spent.append(getattr(method, "evidence_flops", None))
        if any(flops is None for flops in spent):
            return None
        return [{"text": None, "evidence_flops": float(flops)} for flops in spent]


def play_method(method: Callable[[Problem, int], Method]) -> MethodPlayer:
    """Return the player of a baseline: its class (see baselines/base.py), or what it learned."""
    return MethodPlayer(method)


def evaluate(
    players: Mapping[str, Player],
    split: Split,
    tasks: Iterable[str] | None,
    budget: int,
    seeds: Sequence[int],
    path: str | os.PathLike,
    *,
    tables: Mapping[str, str],
    matching: bool = True,
    with_evidence: bool = True,
    stress: Stress | None = None,
    progress: bool = True,
) -> pa.Table:
    """Score players on the held-out experiments; resumes method by method.

    Args:
      players: by the name of their method.
      split: training experiments, which are the evidence, and sealed held-out ones.
      tasks: the tasks to score; all where None.
      budget: trials an episode.
      seeds: one episode per experiment and seed.
      path: where `results.parquet` goes. Beside it come `transcripts.jsonl` and `parts/`.
      tables: `table_hashes` of the roots that the split is from: with other tables, players play
        again. (The outcomes themselves are sealed to this module as well.)
      matching: whether an unmeasured configuration is replaced by the nearest measured one.
      with_evidence: whether games come with any evidence.
      stress: what is done to the evidence, for every player alike; nothing where None.
      progress: whether to show a progress bar (on a terminal).

    Returns:
      The results, one row a trial, with the columns of `SCHEMA`: players in the order given,
      experiments by id, then seeds, then trials. The schema's metadata holds the budget
      and the methods.

    Raises:
      UserError: there is nothing to score.
      RuntimeError: a player left a game unended or returned another number of transcripts.
    """
    path, stress = Path(path), stress or Stress()
    split = distort(split, stress)
    targets = [e for e in split.held_out if tasks is None or e.task in set(tasks)]
    targets.sort(key=lambda e: e.id)
    if not targets or not seeds:
        raise UserError(
            "nothing to score: the tables have no experiment of these tasks at the level that "
            "config.protocol holds out, or config.evaluation.seeds is empty"
        )
    evidence = {e.id: evidence_for(e, split.training) if with_evidence else () for e in targets}
    # Only what differs from the plain terms is named, so that a new term replays no old game.
    terms = ([] if with_evidence else ["no evidence"]) + ([str(stress)] if stress.label else [])
    games_digest = _digest_games(targets, budget, seeds, matching, tables, terms)

    def make_games():
        return [
            Game(Episode(e, evidence[e.id], budget, matching=matching), seed)
            for e in targets
            for seed in seeds
        ]

    parts, quiet = [], not (progress and distributed.is_main())
    bar = tqdm(players.items(), "evaluate", unit="method", disable=quiet or None)
    for name, player in bar:
        bar.set_postfix_str(name)
        digest = hashlib.sha256(
            json.dumps([games_digest, name, getattr(player, "identity", "")]).encode()
        ).hexdigest()
        part = path.parent / "parts" / f"{name}.parquet"
        _make_part(part, digest, name, player, make_games)
        parts.append(part)
    # Summaries must know of trials that no method used, and of a method that used none.
    metadata = {"budget": str(budget), "methods": json.dumps(list(players))}
    tables = [pq.read_table(part).replace_schema_metadata(None) for part in parts]
    results = pa.concat_tables(tables).replace_schema_metadata(metadata)

    def write():
        transcripts = [part.with_suffix(".transcripts.jsonl").read_text() for part in parts]
        write_atomic(path.parent / "transcripts.jsonl", "".join(transcripts))
        write_atomic(path, parquet_bytes(results))

    distributed.on_main(write)
    return results


def _make_part(part: Path, digest: str, name: str, player: Player, make_games: Callable) -> None:
    """Let a player play its games, unless its part is there; process 0 writes it."""
    if distributed.on_main(lambda: _digest_of(part) == digest):
        return
    if getattr(player, "together", False):
        played = _play(name, player, make_games())
        distributed.on_main(lambda: _write_part(part, digest, *played))
    else:
        distributed.on_main(lambda: _write_part(part, digest, *_play(name, player, make_games())))


def _play(name: str, player: Player, games: Sequence[Game]) -> tuple[list[dict], list[dict]]:
    """Return a player's result rows and transcripts."""
    texts = player(games)
    left = sum(not game.episode.done for game in games)
    if left:
        raise RuntimeError(f"{name} left {left} of {len(games)} games without playing to their end")
    if texts is not None and len(texts) != len(games):
        raise RuntimeError(f"{name} returned {len(texts)} transcripts of {len(games)} games")
    rows = [
        {**row, "method": name, "seed": game.seed}
        for game in games
        for row in game.episode.score_rows()
    ]
    transcripts = [
        {
            "method": name,
            "task": game.episode.setting.task,
            "source": game.episode.setting.source,
            "experiment": game.episode.setting.name,
            "seed": game.seed,
            **(said if isinstance(said, Mapping) else {"text": said}),
        }
        for game, said in zip(games, texts or [], strict=bool(texts))
    ]
    return rows, transcripts


def _write_part(part: Path, digest: str, rows: list[dict], transcripts: list[dict]) -> None:
    # The Parquet file carries the digest, so it is written last: it vouches for both.
    lines = "".join(json.dumps(t) + "\n" for t in transcripts)
    write_atomic(part.with_suffix(".transcripts.jsonl"), lines)
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"digest": digest}))
    write_atomic(part, parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file's bytes, to be written at once."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _digest_of(part: Path) -> str | None:
    """Return the digest that a part was written for; None where there is no readable part."""
    if not (part.exists() and part.with_suffix(".transcripts.jsonl").exists()):
        return None
    try:
        metadata = pq.read_schema(part).metadata or {}
    except pa.ArrowInvalid:
        return None
    return metadata.get(b"digest", b"").decode()


def _digest_games(targets, budget, seeds, matching, tables, terms) -> str:
    ids = [target.id for target in targets]
    described = [VERSION, ids, budget, list(map(int, seeds)), matching, sorted(tables.items())]
    described += terms
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def table_hashes(roots: Sequence[str | os.PathLike]) -> dict[str, str]:
    """Return the SHA-256 of every outcome table's files, by "SOURCE/TASK.parquet" and ".json"."""
    return {
        f"{path.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for path in find_tables(roots)
        for file in (path, path.with_suffix(".json"))
    }
