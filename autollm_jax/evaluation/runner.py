"""Plays every method on every held-out experiment, on equal terms, and writes the results.

1. Make the games: one episode per experiment and seed, the same for every method. An episode shows
   the experiment's setting and keeps its outcomes. Players do not make episodes, so evidence,
   default, budget and matching cannot differ.
2. Let each player play its games, and check that each game was ended.
3. Write the player's part under parts/, with a digest of games, tables, package and player. A
   player whose part has the same digest is not played again; players of one identity (a policy that
   reinforcement learning left as it was, say) play once.
4. Concatenate the parts to results.parquet and transcripts.jsonl.
"""

import atexit
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from autollm_jax import host
from autollm_jax.baselines.base import Method, Problem
from autollm_jax.baselines.learned import Learned
from autollm_jax.cluster import distributed
from autollm_jax.errors import UserError
from autollm_jax.files import package_digest, write_atomic
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.splits import Split, evidence_for
from autollm_jax.gym.stress import Stress, distort
from autollm_jax.gym.tables import Roots, find_tables
from autollm_jax.progress_bar import progress_bar

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


@dataclass(frozen=True)
class Game:
    """One episode to be played, and the seed to play it with."""

    episode: Episode
    seed: int


# The record of a game beside its trials: its text, or a mapping of JSON values with the keys
#   text: the game's text;
#   claims: per turn, counts of the checked statements of its thinking;
#   evidence_flops: FLOPs of the game's own cheap runs, for a method that ignores the evidence.
Transcript = str | Mapping
# A player plays each game to its end. It may return one transcript per game, in their order. It
# may have two attributes: `identity: str`, its settings (a hash of the weights, the adviser's
# name), and `together: bool`, whether all processes play it. Else process 0 plays it alone.
Player = Callable[[Sequence[Game]], Sequence[Transcript] | None]


@dataclass(frozen=True)
class Terms:
    """The terms on which every method plays.

    Attributes:
      budget: trials per episode.
      seeds: one episode per experiment and seed.
      tasks: the tasks to score; all where None.
      matching: whether the nearest measured configuration answers for an unmeasured one.
      with_evidence: whether games come with evidence.
      stress: the change of the evidence, the same for every player.
    """

    budget: int
    seeds: Sequence[int]
    tasks: Sequence[str] | None = None
    matching: bool = True
    with_evidence: bool = True
    stress: Stress = field(default_factory=Stress)


@dataclass(frozen=True)
class MethodPlayer:
    """Plays a baseline: asks it for a configuration, runs that, and tells it the trial.

    Attributes:
      method: the baseline.
      failing: of every problem, as in `Problem`.
      processes: 1 plays in this process; more are spawned, which needs a main module that can be
        imported without work, and share the games.
    """

    method: Callable[[Problem, int], Method]
    failing: str = ""
    processes: int = 1

    @property
    def identity(self) -> str:
        """The digest of a meta-learned method; empty for others, which have no settings."""
        return getattr(self.method, "digest", "")

    def __call__(self, games: Sequence[Game]) -> list[Transcript] | None:
        count = min(self.processes, len(games))
        if count > 1:
            shares = _shares(games, count)
            spent: list[float | None] = [None] * len(games)
            of_shares = [[games[place] for place in share] for share in shares]
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                work = functools.partial(host.leave, folder, self._played)
                left = list(_pool(self.processes).map(work, of_shares))
                played = [host.collect(path) for path in left]
            for place, (configs, flops) in zip(
                itertools.chain(*shares), itertools.chain(*played), strict=True
            ):
                spent[place] = flops
                for config in configs:
                    games[place].episode.exec_config(config)
        else:
            spent = [flops for _, flops in self._played(games)]
        known = [float(flops) for flops in spent if flops is not None]
        if len(known) < len(spent):
            return None
        return [{"text": None, "evidence_flops": flops} for flops in known]

    def _played(self, games: Sequence[Game]) -> list[tuple[list, float | None]]:
        """Play games; return each one's asked configurations, and the method's `evidence_flops`."""
        with host.on_cpu():
            return [self._played_one(game.episode, game.seed) for game in games]

    def _played_one(self, episode: Episode, seed: int) -> tuple[list, float | None]:
        asked = []
        problem = Problem(episode.setting, episode.evidence, episode.budget, self.failing)
        method = self.method(problem, seed)
        while not episode.done:
            asked.append(method.ask())
            method.tell(episode.exec_config(asked[-1]))
        return asked, getattr(method, "evidence_flops", None)


def _shares(games: Sequence[Game], count: int) -> list[list[int]]:
    """Deal the places of games; those of one experiment stay together, for they share fits."""
    places: dict[str, list[int]] = {}
    for place, game in enumerate(games):
        places.setdefault(game.episode.setting.id, []).append(place)
    groups = list(places.values())
    dealt = [groups[start::count] for start in range(min(count, len(groups)))]
    return [[place for group in share for place in group] for share in dealt]


def learn_side_by_side(learners: Sequence[Learned], processes: int) -> None:
    """Let processes learn what meta-learned methods lack; each keeps it in the method's file."""
    lacking = [learner for learner in learners if not learner.known]
    if min(processes, len(lacking)) > 1:
        list(_pool(processes).map(_learn, lacking))


def learn_beside(learners: Sequence[Learned]) -> list[BaseProcess]:
    """Begin to learn what meta-learned methods lack, each in a process of low priority.

    They show no progress, since this process has bars of its own. One that fails says so on
    standard error; `learn_side_by_side` then learns anew.
    """
    lacking = [learner for learner in learners if not learner.known]
    return [host.beside(_learn, dataclasses.replace(each, progress=False)) for each in lacking]


def _learn(learner: Learned) -> None:
    _ = learner.arrays


@functools.cache
def _pool(processes: int) -> concurrent.futures.Executor:
    """Return the processes that play; they stay, since each imports every library once."""
    pool = host.pool(processes)
    atexit.register(pool.shutdown)
    return pool


def play_method(
    method: Callable[[Problem, int], Method], failing: str = "", processes: int = 1
) -> MethodPlayer:
    """Return the player of a baseline: a class of `BASELINES`, or a `Learned` one."""
    return MethodPlayer(method, failing, processes)


def evaluate(
    players: Mapping[str, Player],
    split: Split,
    terms: Terms,
    path: str | os.PathLike,
    *,
    tables: Mapping[str, str],
    progress: bool = True,
) -> pa.Table:
    """Score players on the held-out experiments; resumes method by method.

    Args:
      players: by the name of their method.
      split: training experiments, which are the evidence, and held-out ones.
      terms: the terms of every game.
      path: the path of `results.parquet`. `transcripts.jsonl` and `parts/` come beside it.
      tables: `table_hashes` of the split's roots. With other tables players play again.
      progress: whether to show it.

    Returns:
      The results, one row per trial, with the columns of `SCHEMA`: players in the order given,
      experiments by id, then seeds, then trials. The schema's metadata holds the budget
      and the methods.

    Raises:
      UserError: there is nothing to score.
      RuntimeError: a player left a game unended or returned another number of transcripts.
    """
    path = Path(path)
    split = distort(split, terms.stress)
    targets = _targets(split, terms)
    evidence = [evidence_for(e, split.training) if terms.with_evidence else () for e in targets]
    games_digest = _digest_games(targets, terms, tables)

    def make_games() -> list[Game]:
        return [
            Game(Episode(target, known, terms.budget, matching=terms.matching), seed)
            for target, known in zip(targets, evidence, strict=True)
            for seed in terms.seeds
        ]

    parts, shown = [], progress and distributed.is_main()
    played: dict[str, Path] = {}  # part by identity
    bar = progress_bar(players.items(), "evaluate", unit="method", shown=shown)
    for name, player in bar:
        bar.set_postfix_str(name)
        identity = getattr(player, "identity", "")
        digest = _sha256([games_digest, name, identity])
        parts.append(path.parent / "parts" / f"{name}.parquet")
        _make_part(parts[-1], digest, name, player, make_games, played.get(identity))
        if identity:
            played[identity] = parts[-1]
    # Summaries must know of trials that no method used, and of a method that used none.
    metadata = {"budget": str(terms.budget), "methods": json.dumps(list(players))}
    rows = [pq.read_table(part).replace_schema_metadata(None) for part in parts]
    results = pa.concat_tables(rows).replace_schema_metadata(metadata)

    def write():
        transcripts = [part.with_suffix(".transcripts.jsonl").read_text() for part in parts]
        write_atomic(path.parent / "transcripts.jsonl", "".join(transcripts))
        write_atomic(path, parquet_bytes(results))

    distributed.on_main(write)
    return results


def _targets(split: Split, terms: Terms) -> list[Experiment]:
    """Return the experiments to be scored, by id."""
    wanted = [e for e in split.held_out if terms.tasks is None or e.task in set(terms.tasks)]
    if not wanted or not terms.seeds:
        raise UserError(
            "nothing to score: the tables have no experiment of these tasks at the level that "
            "config.protocol holds out, or config.evaluation.seeds is empty"
        )
    return sorted(wanted, key=lambda e: e.id)


def _make_part(
    part: Path, digest: str, name: str, player: Player, make_games: Callable, twin: Path | None
) -> None:
    """Let a player play its games unless its part has this digest; process 0 writes the part.

    Args:
      twin: the part of a player that plays alike, to be copied; None where there is none.
    """
    if distributed.on_main(lambda: _digest_of(part) == digest):
        return
    if twin is not None:
        distributed.on_main(lambda: _write_part(part, digest, *_renamed(twin, name)))
    elif getattr(player, "together", False):
        played = _play(name, player, make_games())
        distributed.on_main(lambda: _write_part(part, digest, *played))
    else:
        distributed.on_main(lambda: _write_part(part, digest, *_play(name, player, make_games())))


def _play(name: str, player: Player, games: Sequence[Game]) -> tuple[list[dict], list[dict]]:
    """Let a player play all its games; return its result rows and transcripts."""
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


def _renamed(part: Path, name: str) -> tuple[list[dict], list[dict]]:
    """Return the rows and transcripts of a part under another method's name."""
    lines = part.with_suffix(".transcripts.jsonl").read_text().splitlines()
    found = pq.read_table(part).to_pylist(), [json.loads(line) for line in lines]
    rows, transcripts = ([each | {"method": name} for each in entries] for entries in found)
    return rows, transcripts


def _write_part(part: Path, digest: str, rows: list[dict], transcripts: list[dict]) -> None:
    # The Parquet file carries the digest, so it is written last: it vouches for both.
    lines = "".join(json.dumps(t) + "\n" for t in transcripts)
    write_atomic(part.with_suffix(".transcripts.jsonl"), lines)
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"digest": digest}))
    write_atomic(part, parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the bytes of a table's Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _digest_of(part: Path) -> str | None:
    """Return the digest in a part's metadata; None where there is no readable part."""
    if not (part.exists() and part.with_suffix(".transcripts.jsonl").exists()):
        return None
    try:
        metadata = pq.read_schema(part).metadata or {}
    except pa.ArrowInvalid:
        return None
    return metadata.get(b"digest", b"").decode()


def _digest_games(targets: Sequence[Experiment], terms: Terms, tables: Mapping[str, str]) -> str:
    """Hash everything that results depend on but the player's own settings."""
    stress = str(terms.stress) if terms.stress.label else None
    seeds = list(map(int, terms.seeds))
    played = [terms.budget, seeds, terms.matching, terms.with_evidence, stress]
    return _sha256([package_digest(), [e.id for e in targets], played, sorted(tables.items())])


def _sha256(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def table_hashes(roots: Roots) -> dict[str, str]:
    """Return the SHA-256 of every file of the outcome tables under some roots.

    Returns:
      {"SOURCE/TASK.parquet": SHA-256, "SOURCE/TASK.json": …}.

    Raises:
      UserError: a root is no folder.
    """
    return {
        f"{path.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for path in find_tables(roots)
        for file in (path, path.with_suffix(".json"))
    }
