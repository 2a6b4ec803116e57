import os
import pathlib
import subprocess
import sys

import pytest

import autollm_jax
from autollm_jax.gym.experiments import load_experiments

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
CSV = """h,ffnh,numh,numl,lr,bs,ti,loss,smooth loss,exp_name,D,N,D/N
960,9368,15,7,0.00276,64,100,2.6,2.5,a,4000000000,214663680,18.6
960,9368,15,7,0.00391,64,100,2.6,2.4,b,4000000000,214663680,18.6
1280,9472,10,10,0.0111,64,100,6.9,6.9,c,4000000000,429260800,9.3
1280,9472,10,10,0.00391,64,100,2.3,2.3,d,4000000000,429260800,9.3
"""


def import_data(*arguments):
    # Whatever the machine's network, a download must find none.
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    return subprocess.run(
        [sys.executable, "launch/import_data.py", *arguments],
        cwd=ROOT,
        env=os.environ | nowhere | {"no_proxy": ""},
        capture_output=True,
        text=True,
    )


def test_a_file_is_imported_and_summed_up(tmp_path):
    path, out = tmp_path / "dense_lr_bs_loss.csv", tmp_path / "roots"
    path.write_text(CSV)
    done = import_data("--source=steplaw", f"--path={path}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "2 experiments (1 low, 1 mid), 4 rows: 3 ok, 1 diverged" in done.stdout
    assert "licence: none stated" in done.stdout and "not the pinned file" in done.stdout
    assert [e.fidelity.level for e in load_experiments([out])] == ["low", "mid"]
    written = sorted(p.name for p in (out / "steplaw").iterdir())
    assert written == ["pretraining.json", "pretraining.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=steplaws", "--out=OUT"], "--source is 'steplaws'; accepted are steplaw"),
        (["--source=steplaw"], "--out is missing"),
        (["--source=steplaw", "--path=nowhere.csv", "--out=OUT"], "nowhere.csv: no Step Law file"),
        (["--source=steplaw", "--out=OUT"], "by hand into a folder and give it as --path=FOLDER"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, arguments, message):
    arguments = [argument.replace("OUT", str(tmp_path / "roots")) for argument in arguments]
    done = import_data(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bad_file_leaves_the_old_table(tmp_path):
    path = tmp_path / "dense_lr_bs_loss.csv"
    path.write_text(CSV)
    arguments = ("--source=steplaw", f"--path={path}", f"--out={tmp_path}")
    import_data(*arguments)
    before = {p: p.read_bytes() for p in (tmp_path / "steplaw").iterdir()}
    path.write_text(CSV[:-30])
    assert import_data(*arguments).returncode == 1
    assert {p: p.read_bytes() for p in (tmp_path / "steplaw").iterdir()} == before


def test_without_arguments_it_says_how_it_is_used():
    done = import_data()
    assert done.returncode == 1
    assert "python launch/import_data.py --source=steplaw --out=ROOT" in done.stdout
    assert done.stderr == "error: --source and --out are missing\n"
