"""The work directory: which config it belongs to."""

import json
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.files import write_json_atomic

# Fields that do not shape what is trained, and so may change between runs over one directory.
FREE_FIELDS = (
    *("cross_validate", "evaluation", "plan", "pool", "stress", "verify"),
    *("distributed", "mesh"),
)
# Nor do these: what is trained is the same, by whichever process.
FREE_NAMES = ("ground_truth.share",)
# A trained agent may be scored on other tables, and under another protocol.
SCORING_FIELDS = ("gym", "protocol")


def claim(workdir, config: dict, scoring: bool) -> None:
    """Write `config.json`, or check that the directory belongs to this config.

    Args:
      workdir: the directory.
      config: the whole config, JSON values.
      scoring: the stage only scores what is trained already.

    Raises:
      UserError: it was made with another config; nothing is changed.
    """
    path = Path(workdir) / "config.json"
    config = json.loads(json.dumps(config))
    # A first run that stopped at a mistake in its config left nothing to protect.
    nothing_yet = not path.exists() or list(path.parent.iterdir()) == [path]
    if nothing_yet:
        write_json_atomic(path, config)
        return
    try:
        ours = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); give another --workdir") from error
    free = FREE_FIELDS + (SCORING_FIELDS if scoring else ())
    before, now = _flatten(ours), _flatten(config)
    for name in sorted(before.keys() | now.keys()):
        if name in FREE_NAMES or name.split(".")[0] in free:
            continue
        if before.get(name) != now.get(name):
            raise UserError(
                f"{path}: config.{name} is {before.get(name)!r} there and {now.get(name)!r} now; "
                "give the config it was made with, or another --workdir"
            )


def _flatten(value, prefix: str = "") -> dict:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, child in value.items()
        for name, leaf in _flatten(child, f"{prefix}.{key}" if prefix else key).items()
    }
