import io
import json
import os
import pathlib
import tarfile
import zipfile

import pytest

import autollm_jax
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.sources import SOURCES
from autollm_jax.sources.download import MOST_LISTED
from tests import scripts
from tests.sources.autoresearch_files import trial

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
PUBLISHED = pathlib.Path(os.environ.get("AUTOLLM_PUBLISHED_TABLES", ROOT.parent / "shared/data"))
CSV = """h,ffnh,numh,numl,lr,bs,ti,loss,smooth loss,exp_name,D,N,D/N
960,9368,15,7,0.00276,64,100,2.6,2.5,a,4000000000,214663680,18.6
960,9368,15,7,0.00391,64,100,2.6,2.4,b,4000000000,214663680,18.6
1280,9472,10,10,0.0111,64,100,6.9,6.9,c,4000000000,429260800,9.3
1280,9472,10,10,0.00391,64,100,2.3,2.3,d,4000000000,429260800,9.3
"""


def import_data(*arguments, **environment):
    # Whatever the machine's network, a download must find none.
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    environment = os.environ | nowhere | {"no_proxy": ""} | environment
    return scripts.run("launch/import_data.py", *arguments, environment=environment)


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


def test_the_home_folder_is_meant_by_a_tilde(tmp_path):
    (tmp_path / "dense_lr_bs_loss.csv").write_text(CSV)
    done = import_data("--source=steplaw", "--path=~", "--out=~/roots", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(load_experiments(tmp_path / "roots")) == 2


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


def test_all_reads_each_source_from_its_folder_and_passes_over_what_fails(tmp_path):
    (tmp_path / "steplaw").mkdir()
    (tmp_path / "steplaw" / "dense_lr_bs_loss.csv").write_text(CSV)
    (tmp_path / "regmix").mkdir()
    (tmp_path / "regmix" / "test_mixture_60m.csv").write_text("index,loss\n")
    done = import_data("--source=all", f"--path={tmp_path}", f"--out={tmp_path / 'roots'}")
    assert done.returncode == 1
    assert "steplaw/pretraining: 2 experiments (1 low, 1 mid), 4 rows" in done.stdout
    assert all(f"licence: {source.licence}" in done.stdout for source in SOURCES.values())
    lines = done.stderr.splitlines()
    others = [name for name in SOURCES if name != "steplaw"]
    assert [line.split(": ")[1] for line in lines] == [*others, "--source=all"]
    assert "test_pile_loss_60M.csv is not beside it" in lines[others.index("regmix")]
    assert lines[-1].endswith(f"not imported: {', '.join(others)}; the reasons are above")
    assert [p.name for p in (tmp_path / "roots").iterdir()] == ["steplaw"]


def test_all_reads_archives_of_the_sources_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "steplaw.zip", "w") as archive:
        archive.writestr("steplaw-32a8f4c/data/dense_lr_bs_loss.csv", CSV)
    lines = "".join(json.dumps(trial(1.0 + n, DEPTH=4 + n)) + "\n" for n in range(3)).encode()
    with tarfile.open(tmp_path / "autoresearch.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("repo-2959c3c/results/random/seed_0/trials.jsonl")
        info.size = len(lines)
        archive.addfile(info, io.BytesIO(lines))
    done = import_data("--source=all", f"--path={tmp_path}", f"--out={tmp_path / 'roots'}")
    assert "steplaw/pretraining: 2 experiments (1 low, 1 mid), 4 rows" in done.stdout
    assert "autoresearch/pretraining: 3 experiments (3 low), 3 rows: 3 ok" in done.stdout
    written = sorted(p.name for p in (tmp_path / "roots").iterdir())
    assert written == ["autoresearch", "steplaw"]


def test_all_published_tables_beside_this_clone_are_imported(tmp_path):
    if not PUBLISHED.is_dir():
        pytest.skip("the published tables are not beside this clone")
    done = import_data("--source=all", f"--path={PUBLISHED}", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    experiments = load_experiments(tmp_path)
    assert {e.source for e in experiments} == set(SOURCES)
    # Of autoresearch the default is upstream's own recipe, which was run at DEPTH 8 alone.
    unmeasured = [e.name for e in experiments if e.match(e.default).matched]
    assert unmeasured == [f"depth-{depth}" for depth in (4, 5, 6, 7, 9)]


def test_all_without_a_connection_names_every_file_to_place_by_hand(tmp_path):
    out = tmp_path / "roots"
    done = import_data("--source=all", f"--out={out}")
    assert done.returncode == 1 and not out.exists()
    *lines, last = done.stderr.splitlines()
    wanted = [
        (s, file) for s in SOURCES.values() for file in s.files if len(s.files) <= MOST_LISTED
    ]
    archives = [source for source in SOURCES.values() if len(source.files) > MOST_LISTED]
    assert [source.name for source in archives] == ["autoresearch"]
    assert len(lines) == len(wanted) + len(archives) and "not imported: " in last
    for source, file in wanted:
        place = f"downloads/{source.name}/{file.rpartition('/')[2]}"
        (line,) = [line for line in lines if f"place {source.file_address(file)} as" in line]
        assert f"as {place}, then: " in line
        command = f"--source={source.name} --path=downloads/{source.name} --out={out}"
        assert line.endswith(f"python launch/import_data.py {command}")
    for source in archives:
        place = f"downloads/{source.name}.zip"
        (line,) = [line for line in lines if f"place {source.archive_address} as {place}" in line]
        assert line.endswith(f"--source={source.name} --path={place} --out={out}")


@pytest.mark.parametrize("source", SOURCES)
def test_a_hostile_or_damaged_file_executes_and_writes_nothing(tmp_path, source):
    trace = tmp_path / "executed"
    hostile = f"cposix\nsystem\n(S'touch {trace}'\ntR.".encode()
    for file in SOURCES[source].files:
        path = tmp_path / "files" / SOURCES[source].place(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("perplexity/data.pkl", hostile)
    out = tmp_path / "roots"
    done = import_data(f"--source={source}", f"--path={tmp_path / 'files'}", f"--out={out}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'files'}")
    assert not trace.exists() and not out.exists()


def test_without_arguments_it_says_how_it_is_used():
    done = import_data()
    assert done.returncode == 1
    assert "python launch/import_data.py --source=steplaw --out=ROOT" in done.stdout
    assert done.stderr == "error: --source and --out are missing\n"
