from autollm_jax.gym.tables import write_table
from tests import scripts


def run(*arguments):
    return scripts.run("launch/difficulty.py", *arguments)


def table(root, levels=("low", "mid")):
    rates = [0.001, 0.002, 0.004, 0.008, 0.016]
    entry = {
        "context": {},
        "objective": {"metric": "loss", "goal": "minimize"},
        "default": {"rate": 0.001},
        "default_origin": "the least",
        "space": {"dimensions": [{"name": "rate", "kind": "log-ordinal", "choices": rates}]},
    }
    sizes = {"low": 1e6, "mid": 4e6}
    experiments = {
        level: entry
        | {"fidelity": {"level": level, "parameters": n, "tokens": 1e9, "flops": 6e9 * n}}
        for level, n in sizes.items()
        if level in levels
    }
    meta = {"format": 1, "source": "mine", "task": "pretraining", "experiments": experiments}
    rows = [
        {"experiment": level, "config.rate": rate, "loss": abs(place - 2) + 1.0, "flops": None,
         "seconds": None, "seed": 0, "status": "ok"}
        for level in experiments
        for place, rate in enumerate(rates)
    ]  # fmt: skip
    write_table(root, meta, rows)


def test_the_section_of_a_page_is_replaced(tmp_path):
    table(tmp_path / "root")
    page = tmp_path / "tables.md"
    page.write_text("# Tables\n\n## Difficulty\n\nold figures\n\n## Later\n\nkept\n")
    root = tmp_path / "root"
    done = run(f"--roots={root}", f"--own={root}", "--seeds=2", f"--page={page}")
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "old figures" not in text and "\n## Later\n\nkept\n" in text
    assert "| pretraining | mid | 1 | 1 | 5 |" in text
    [line] = [line for line in text.splitlines() if line.startswith("| pretraining | mine")]
    assert line.startswith("| pretraining | mine | 1 | ") and line in done.stdout
    assert ".00 / .00 / .00 (nearest_experiment)" in line


def test_a_mistake_is_one_line(tmp_path):
    table(tmp_path, levels=("low",))
    for arguments, message in (
        ((f"--roots={tmp_path}",), "no experiment of level mid"),
        ((f"--page={tmp_path / 'none.md'}",), "no such page; accepted is a Markdown file"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
