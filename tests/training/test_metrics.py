import json

from autollm_jax.training.metrics import MetricsWriter


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_stage_drops_its_rows_from_the_restored_step_on(tmp_path):
    for stage, steps in (("distill", range(3)), ("grpo", range(4))):
        writer = MetricsWriter(tmp_path, stage)
        for step in steps:
            writer.write(step, {"loss": 1.0})
        writer.close()
    writer = MetricsWriter(tmp_path, "grpo", first_step=2)
    writer.write(2, {"loss": 2.0})
    writer.close()
    assert [(r["stage"], r["step"], r["loss"]) for r in rows(tmp_path)] == [
        *[("distill", step, 1.0) for step in range(3)],
        ("grpo", 0, 1.0),
        ("grpo", 1, 1.0),
        ("grpo", 2, 2.0),
    ]


def test_the_broken_last_line_of_a_killed_run_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "grpo", "step": 0}\n{"stage": "gr')
    writer = MetricsWriter(tmp_path, "grpo", first_step=1)
    writer.write(1, {})
    writer.close()
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def test_tensorboard_events_are_written_too(tmp_path):
    writer = MetricsWriter(tmp_path, "grpo")
    writer.write(0, {"loss": 1.0})
    writer.close()
    assert list((tmp_path / "tensorboard" / "grpo").glob("events*"))
