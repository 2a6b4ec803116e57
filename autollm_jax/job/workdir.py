"""The work directory: one job at a time, made with one config, restarted from a stage.

`locked` keeps a second job out. `claim` compares the config with the one that the directory was
made with: a field may change as long as no stage that read it has written a checkpoint or a file.
`restart` moves what a stage and later ones wrote to `set_aside/`, after which their fields may
change.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.files import (
    read_json,
    read_json_lines,
    writable_folder,
    write_atomic,
    write_json_atomic,
)
from autollm_jax.job.fields import flatten, rule_of

# Stages in order, with what each writes in the work directory (glob patterns).
OUTPUTS = {
    "ground_truth": ("ground_truth",),  # and its tables, where their root is in the directory
    "curate": ("trajectories/pairs_*.jsonl",),
    "simulate": ("trajectories/trajectories.jsonl", "trajectories/tokenizer.model"),
    "distill": ("checkpoints/distill", "tensorboard/distill"),
    "grpo": (
        *("checkpoints/grpo", "checkpoints/grpo_best", "checkpoints/grpo_ahead"),
        "tensorboard/grpo",
    ),
    "evaluate": ("evaluation", "baselines"),
    "report": ("report",),
}
# A stage of which this exists has begun to keep something that its fields shape.
KEPT = {
    "curate": "trajectories/pairs_distill.jsonl",
    "simulate": "trajectories/trajectories.jsonl",
    "distill": "checkpoints/distill/[0-9]*",
    "grpo": "checkpoints/grpo/[0-9]*",
}
# The first stage that reads a field; the longest path that it begins with counts. "" is none: what
# is trained does not depend on the field.
READ_BY = {
    "seed": "curate",
    "protocol": "curate",
    "gym": "curate",
    "gym.budget": "simulate",
    "gym.matching": "simulate",
    "gym.invalid_penalty": "grpo",
    "ground_truth": "ground_truth",
    "ground_truth.share": "",
    "ground_truth.checkpoint_seconds": "",
    "curate": "curate",
    "simulate": "simulate",
    "simulate.processes": "",
    "policy": "distill",
    "policy.vocab_size": "simulate",
    "policy.split_digits": "simulate",
    "policy.full_texts": "simulate",
    "policy.context": "grpo",
    "policy.turn_tokens": "grpo",
    "policy.cache_dtype": "grpo",
    "distill": "distill",
    "distill.save_every": "",
    "rollout": "grpo",
    "rollout.processes": "",
    "grpo": "grpo",
    "grpo.save_every": "",
    **dict.fromkeys(("cross_validate", "evaluation", "plan", "pool", "stress", "verify"), ""),
    **dict.fromkeys(("compilation_cache", "distributed", "mesh", "profile"), ""),
}
# Curation draws GRPO's pairs, but no episode is played on them before GRPO.
PAIRS_OF_GRPO, PAIR_FIELDS = (
    ("trajectories/pairs_grpo.jsonl", "trajectories/pairs_kept_out.jsonl"),
    ("grpo.steps", "grpo.pairs", "grpo.kept_out", "grpo.synthetic"),
)
# A trained agent may be scored on other tables, and under another protocol.
SCORING_FIELDS = ("gym", "protocol")
LOGS = ("metrics.jsonl", "stages.jsonl")  # a row names its stage
LOCK, SHARE_LOCK, SET_ASIDE, RESTART = ".lock", ".lock_share_{}_{}", "set_aside", "restart.json"


@contextlib.contextmanager
def locked(workdir: str | os.PathLike, share: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Keep other jobs out of a work directory, as long as the context or this process lasts.

    Args:
      workdir: the directory; made where there is none.
      share: (i, n); with n over 1 the job trains a share of the ground truth, and shares with other
        numbers may work beside it.

    Raises:
      UserError: another job is using the directory, or it cannot be written.
    """
    workdir = writable_folder(workdir)
    with contextlib.ExitStack() as stack:
        if share[1] > 1:
            stack.enter_context(_lock(workdir, LOCK, fcntl.LOCK_SH))
            stack.enter_context(_lock(workdir, SHARE_LOCK.format(*share), fcntl.LOCK_EX))
        else:
            stack.enter_context(_lock(workdir, LOCK, fcntl.LOCK_EX))
        yield


@contextlib.contextmanager
def _lock(workdir: Path, name: str, kind: int) -> Iterator[None]:
    """Hold a lock file. The system lets go of it when its process ends, however that ends."""
    with open(os.open(workdir / name, os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
            taken = False
        except OSError as error:
            # On a file system without locks the holder's entry has to do.
            held = error.errno in (errno.EACCES, errno.EAGAIN)
            taken = held or _is_alive(_entry(workdir / name))
        if taken:
            entries = [_entry(workdir / name), *map(_entry, sorted(workdir.glob(".lock_share_*")))]
            entry = next(filter(None, entries), {})
            raise UserError(
                f"{workdir}: another job is using it: process {entry.get('pid', '?')} on "
                f"{entry.get('host', '?')}, since {entry.get('start', '?')}; wait for it, stop it, "
                "or give another --workdir"
            )
        if kind == fcntl.LOCK_EX:
            start = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            entry = {"host": socket.gethostname(), "pid": os.getpid(), "start": start}
            file.truncate(0)
            file.write(json.dumps(entry))
            file.flush()
        try:
            yield
        finally:
            if kind == fcntl.LOCK_EX:
                file.truncate(0)


def _entry(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _is_alive(entry: Mapping) -> bool:
    """Whether a lock's holder may still run; on another host it is taken to."""
    if not entry or entry.get("host") != socket.gethostname():
        return bool(entry)
    try:
        os.kill(int(entry["pid"]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def claim(workdir: str | os.PathLike, config: Mapping, *, scoring: bool, restart: str = "") -> None:
    """Write `config.json`, or check that the directory was made with this config.

    Args:
      workdir: the directory.
      config: the whole config, JSON values, as `fields.checked` returns it.
      scoring: the stage only scores what is trained already.
      restart: set aside first what this stage and later ones wrote; "" for nothing.

    Raises:
      UserError: a field has changed that a stage with files here has read; nothing is changed.
    """
    workdir = Path(workdir)
    path = workdir / "config.json"
    config = json.loads(json.dumps(config))
    before = read_json(path) if path.exists() else config
    changed = _changed(before, config, SCORING_FIELDS if scoring else ())
    stages = list(OUTPUTS)
    begun = [stage for stage in stages if _has_kept(workdir, stage, before)]
    if restart:
        begun = [stage for stage in begun if stages.index(stage) < stages.index(restart)]
    last = max(map(stages.index, begun), default=-1)
    refused = [name for name in changed if stages.index(read_by(name)) <= last]
    if refused:
        name = min(refused, key=lambda name: stages.index(read_by(name)))
        stage = read_by(name)
        old, new = (dict(flatten(values)).get(name) for values in (before, config))
        raise UserError(
            f"{path}: config.{name} is {old!r} there and {new!r} now; give the config it was made "
            f"with, another --workdir, or --restart={stage}, which sets aside what {stage} and "
            "later stages wrote"
        )
    if restart:
        _restart(workdir, restart, before, config)
    stale = [name for name in PAIRS_OF_GRPO if (workdir / name).exists()]
    if any(name in changed for name in PAIR_FIELDS) and stale:
        folder = _new_folder(workdir, "curate")
        for name in stale:
            _move(workdir, workdir / name, folder)
        print(f"curate: the pairs of GRPO are drawn again; the former are in {folder}")
    if changed or not path.exists():
        write_json_atomic(path, config)


def read_by(name: str) -> str:
    """Return the first stage that reads a field; "" where no training stage does."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in READ_BY:
            return READ_BY[prefix]
    return "ground_truth"  # a field of another version: to be safe, everything depends on it


def _changed(before: Mapping, now: Mapping, free: tuple[str, ...]) -> list[str]:
    """Name the fields that shape training and differ between two configs."""
    old, new = dict(flatten(before)), dict(flatten(now))

    def value(values, name):
        rule, found = rule_of(name), values.get(name)
        found = rule.form(found) if rule and name in values and rule.holds(found) else found
        return json.dumps(found, sort_keys=True)

    return [
        name
        for name in sorted(old.keys() | new.keys())
        if read_by(name) and name.split(".")[0] not in free and value(old, name) != value(new, name)
    ]


def _has_kept(workdir: Path, stage: str, config: Mapping) -> bool:
    """Whether a stage has written something that its fields shape."""
    if stage == "ground_truth":
        return any(path.exists() for path in _tables(workdir, config))
    return stage in KEPT and any(workdir.glob(KEPT[stage]))


def _tables(workdir: Path, config: Mapping) -> list[Path]:
    """Return the folder of the own tables where it is in the work directory."""
    settings = config.get("ground_truth", {})
    root = Path(settings.get("root", "").replace("{workdir}", str(workdir))).absolute()
    own = root / settings.get("source", "")
    return [own] if own != root and own.is_relative_to(workdir.absolute()) else []


def _restart(workdir: Path, restart: str, before: Mapping, config: Mapping) -> None:
    """Move what a stage and later ones wrote to a folder of its own; nothing is deleted.

    A job that is stopped and started by the same command goes on: the same restart, to the same
    config, is done once.
    """
    entry = {"stage": restart, "config": config}
    folders = sorted((workdir / SET_ASIDE).glob("[0-9]*"), key=_number)
    done = [folder / RESTART for folder in folders if (folder / RESTART).exists()]
    if done:
        former = read_json(done[-1])
        if former["stage"] == restart and not _changed(former["config"], config, ()):
            print(f"restart: done already, going on; remove {done[-1]} to restart {restart} again")
            return
    folder = _new_folder(workdir, restart)
    stages = list(OUTPUTS)[list(OUTPUTS).index(restart) :]
    paths = [path for stage in stages for name in OUTPUTS[stage] for path in workdir.glob(name)]
    if restart == "ground_truth":
        paths += [path for path in _tables(workdir, before) if path.exists()]
    for path in paths:
        _move(workdir, path, folder)
    for name in LOGS:
        log = workdir / name
        if log.exists():
            shutil.copyfile(log, folder / name)
            rows = read_json_lines(log, log=True)
            kept = [json.dumps(row) + "\n" for row in rows if row.get("stage") not in stages]
            write_atomic(log, "".join(kept))
    write_json_atomic(folder / "config.json", before)
    write_json_atomic(folder / RESTART, entry)
    here = workdir.absolute()
    moved = ", ".join(str(path.absolute().relative_to(here)) for path in paths)
    print(f"restart: moved {moved or 'nothing'} to {folder}")


def _new_folder(workdir: Path, stage: str) -> Path:
    numbers = map(_number, (workdir / SET_ASIDE).glob("[0-9]*"))
    folder = workdir / SET_ASIDE / f"{max(numbers, default=0) + 1}_{stage}"
    folder.mkdir(parents=True)
    return folder


def _number(folder: Path) -> int:
    return int(folder.name.partition("_")[0])


def _move(workdir: Path, path: Path, folder: Path) -> None:
    target = folder / path.absolute().relative_to(workdir.absolute())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, target)
