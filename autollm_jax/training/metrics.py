"""Metrics to `metrics.jsonl` and TensorBoard, by host 0."""

import json
import time
from pathlib import Path

from tensorboardX import SummaryWriter

from autollm_jax.cluster import distributed
from autollm_jax.files import write_atomic


class MetricsWriter:
    """Append one row a step to `WORKDIR/metrics.jsonl`, and the same to TensorBoard.

    Every host computes every metric (a host that skipped one would leave the others waiting in a
    collective); only host 0 writes. A stage that resumes at `first_step` drops the rows that an
    interrupted run had written from there on, so that no step is there twice.
    """

    def __init__(self, workdir, stage: str, first_step: int = 0):
        self.stage = stage
        self.path = Path(workdir) / "metrics.jsonl"
        self.is_writer = distributed.is_main()
        if not self.is_writer:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if self._keep(line, first_step)]
            if len(kept) < len(lines):
                write_atomic(self.path, "".join(line + "\n" for line in kept))
        self.file = open(self.path, "a")
        self.events = SummaryWriter(str(Path(workdir) / "tensorboard" / stage))

    def _keep(self, line: str, first_step: int) -> bool:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed run
            return False
        return row["stage"] != self.stage or row["step"] < first_step

    def write(self, step: int, metrics: dict) -> None:
        """Write scalars (floats or arrays of one element) of one step."""
        values = {name: float(value) for name, value in metrics.items()}
        if not self.is_writer:
            return
        row = {"stage": self.stage, "step": int(step), "time": round(time.time(), 3), **values}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(f"{self.stage}/{name}", value, int(step))

    def close(self) -> None:
        if self.is_writer:
            self.file.close()
            self.events.close()
