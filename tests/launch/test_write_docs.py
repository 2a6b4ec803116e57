import json
import shutil

import pytest

from tests import scripts
from tests.report.test_page import proven

RECORD = {
    "code": "0123456789abcdef",
    "versions": "jax 1",
    "roots": "gym_data",
    "fields": {"protocol": "dev"},
}
STAGES = [
    {"stage": "grpo", "seconds": 60.0, "peak_gib": 1.5},
    {"stage": "grpo", "seconds": 30.0, "peak_gib": 2.5},
    {"stage": "evaluate", "seconds": 30.0, "peak_gib": 1.0},
]


@pytest.fixture
def workdir(small_split, tmp_path):
    """A work directory with a report, and what the stages keep beside it."""
    folder = tmp_path / "workdir"
    proven(small_split, folder)
    (folder / "evaluation" / "evaluated.json").write_text(json.dumps(RECORD))
    (folder / "stages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STAGES))
    return folder


def run(*arguments):
    return scripts.run("launch/write_docs.py", *arguments)


def test_the_pages_are_written_and_only_the_readmes_results_are_replaced(workdir, tmp_path):
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    readme.write_text("# Name\n\n## Results\n\nformer\n\n## Quickstart\n\nkept\n")
    done = run(f"--workdir={workdir}", f"--out={docs}", f"--readme={readme}")
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert "former" not in text and text.endswith("\n## Quickstart\n\nkept\n")
    assert "- The agent: " in text and "- Yardsticks: random " in text
    assert "2 minutes and 2.5 GiB on 2 CPU cores, at commit 012345678" in text
    results = (docs / "results.md").read_text()
    assert "| grpo | 90 | 2.5 |" in results and "| agent |" in results
    assert "## grpo" in (docs / "own_tables.md").read_text()
    assert (docs / "picture.svg").read_text().startswith("<svg")


def test_differences_beyond_chance_are_bold_task_by_task(workdir, tmp_path):
    path, docs, readme = workdir / "report/summary.json", tmp_path / "docs", tmp_path / "README.md"
    readme.write_text("# Name\n")
    summary = json.loads(path.read_text())
    tasks = [task for task in summary["difference"]["random"] if task != "all"]
    cells = dict.fromkeys(("1", "3", "5"), {"mean": -0.1, "low": -0.3, "high": 0.1, "n": 2})
    summary["difference"]["random"] |= dict.fromkeys(tasks, cells) | {
        tasks[0]: cells | {"3": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 2}}
    }
    path.write_text(json.dumps(summary))
    done = run(f"--workdir={workdir}", f"--out={docs}", f"--readme={readme}")
    assert done.returncode == 0, done.stderr
    by_task = (docs / "results.md").read_text().partition("By task, after 1 / 3 / 5 trials")[2]
    row = ["-0.100 / **+0.200** / -0.100", *["-0.100 / -0.100 / -0.100"] * (len(tasks) - 1)]
    assert f"| random | {' | '.join(row)} |" in by_task


def test_the_best_method_of_another_package_has_a_line(workdir, tmp_path):
    path, readme = workdir / "report/summary.json", tmp_path / "README.md"
    summary = json.loads(path.read_text())
    for name, mean in (("smac_forest", 0.25), ("optuna_gp", 0.5)):
        cells = dict.fromkeys(("1", "3", "5"), {"mean": mean, "low": 0.1, "high": 0.6, "n": 2})
        for part in ("regret", "difference"):
            summary[part][name] = dict.fromkeys(summary[part]["random"], cells)
        summary["regret_by_source"][name] = dict.fromkeys(
            summary["regret_by_source"]["random"], cells
        )
    path.write_text(json.dumps(summary))
    readme.write_text("# Name\n")
    done = run(f"--workdir={workdir}", f"--out={tmp_path / 'docs'}", f"--readme={readme}")
    assert done.returncode == 0, done.stderr
    said = "- Of 2 [methods of other packages](docs/peers.md) the best, smac forest: 0.250 / 0.250"
    assert said in readme.read_text()


def test_a_pool_on_more_tables_has_its_own_page_and_comes_first(workdir, tmp_path):
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    readme.write_text("# Name\n")
    pool = tmp_path / "pool"
    shutil.copytree(workdir, pool)
    (pool / "config.json").write_text(json.dumps({"pool": {"workdirs": "a,b,c"}}))
    done = run(f"--workdir={workdir}", f"--public={pool}", f"--out={docs}", f"--readme={readme}")
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    pooled, alone = text.index("**Own and public tables**"), text.index("**Our own tables**")
    assert pooled < alone and text.count("on 2 CPU cores") == 1
    assert "3 trainings ([every method](docs/public_results.md))" in text[pooled:alone]
    assert "one training ([every method](docs/results.md))" in text[alone:]
    assert "trainings: 3" in (docs / "public_results.md").read_text()


def test_without_a_work_directory_it_says_what_to_give():
    done = run()
    assert done.returncode == 1 and "--workdir is missing" in done.stderr.splitlines()[-1]


def test_the_page_of_advice_has_the_measured_coverage_and_commit(tmp_path):
    cover = {"before": [0.74, 0.81], "few_sizes": [0.1, 0.2], "more_sizes": None, "after": [1, 1]}
    game = {"experiments": 3, "regret": {"1": 0.25, "3": 0.125, "5": 0.0}, "coverage": cover}
    summary = {
        "code": "0123456789abcdef", "command": "python launch/check_advice.py --roots=a",
        "protocol": "dev", "decider": "all", "calibration": "59 games",
        "sources": {"one/pretraining": game}, "all": game,
    }  # fmt: skip
    path, docs = tmp_path / "advice.json", tmp_path / "docs"
    docs.mkdir()
    (docs / "results.md").write_text("# Results\n\n## By source\n\nkept\n")
    path.write_text(json.dumps(summary))
    done = run(f"--advice={path}", f"--out={docs}")
    assert done.returncode == 0, done.stderr
    page = (docs / "advice_results.md").read_text()
    row = "| 3 | 0.250 / 0.125 / 0.000 | 74, 81 | 10, 20 |  | 100, 100 |"
    assert f"| one/pretraining {row}" in page and f"| all {row}" in page
    assert "at commit 0123456789abcdef" in page and "59 games" in page
    results = (docs / "results.md").read_text()
    assert "kept" in results and results.count("(advice_results.md)") == 1
    assert run(f"--advice={path}", f"--out={docs}").returncode == 0
    assert (docs / "results.md").read_text() == results


def test_without_anything_to_write_from_it_says_so():
    done = run()
    assert done.returncode and "--workdir is missing" in done.stderr
