"""Upstream files of autoresearch in miniature."""

import json
import pathlib

CONFIG = {
    "ASPECT_RATIO": 64, "HEAD_DIM": 128, "WINDOW_PATTERN": "SSSL", "TOTAL_BATCH_SIZE": 524288,
    "EMBEDDING_LR": 0.6, "UNEMBEDDING_LR": 0.004, "MATRIX_LR": 0.04, "SCALAR_LR": 0.5,
    "WEIGHT_DECAY": 0.2, "WARMUP_RATIO": 0.0, "WARMDOWN_RATIO": 0.5, "FINAL_LR_FRAC": 0.0,
    "DEPTH": 8, "DEVICE_BATCH_SIZE": 128,
}  # fmt: skip


def trial(val_bpb=0.99, changes=None, parameters=50.0, tokens=500.0, **config):
    """Return an upstream line's content: a finished run with the default's values but `config`."""
    line = {
        "trial_id": 0, "backend": "random", "config": CONFIG | config, "budget": 300.0,
        "val_bpb": val_bpb, "wall_time_seconds": 300.1, "success": True, "error": None, "seed": 0,
        "extra_metrics": {"num_params_M": parameters, "total_tokens_M": tokens},
    }  # fmt: skip
    return line | (changes or {})


def failed(error="GPU out-of-memory", val_bpb=100.0, **config):
    """Return an upstream line's content: a run that ended in an error."""
    changes = {"success": False, "error": error, "wall_time_seconds": 20.0, "extra_metrics": {}}
    return trial(val_bpb, changes, **config)


def write(folder: pathlib.Path, name: str, lines) -> pathlib.Path:
    """Write `folder`/`name`/trials.jsonl; a line that is bytes is written as it is."""
    path = folder / name / "trials.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in written))
    return path
