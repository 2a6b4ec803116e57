import math

import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.sources import SOURCES, steplaw

DENSE_HEADER = "h,ffnh,numh,numl,lr,bs,ti,loss,smooth loss,exp_name,D,N,D/N"
MOE_HEADER = (
    "seq_len,topk,nume,moeh,sed,h,ffnh,numh,numl,lr,bs,ti,loss,smooth loss,average_iter_time,"
    "target_iter,final_iter,exp_name,moe_layer_enum_type,mfa_version,numld,Nattn,N,Na,M,kvcache,"
    "D,D/N,total_time,Na/N,moe_name"
)
LOW, MID, HIGH = 214663680, 429260800, 536872960


def dense(lr="0.001953", bs=64, loss="2.5", n=LOW, d=4000000000):
    return f"960,9368,15,7,{lr},{bs},100,2.6,{loss},run_{lr}_{bs},{d},{n},{d / n}"


def moe(lr="0.001953", bs=64, loss="2.5", name="k4e16", na=200000000, d=8000000000):
    return (
        f"2048,4,16,704,0,1024,9552,16,8,{lr},{bs},100,2.6,{loss},0.5,100,100,run,1,2,1,5,"
        f"2151700000,{na},7,,{d},3.7,50.0,0.09,{name}"
    )


def write(folder, lines, header=DENSE_HEADER, name="dense_lr_bs_loss.csv"):
    path = folder / name
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def read(path):
    [(meta, rows)] = steplaw.read(path)
    return meta, rows


def load(path, root):
    tables.write_table(root, *read(path))
    return load_experiments([root])


def test_spellings_of_one_learning_rate_are_one_choice(tmp_path):
    path = write(
        tmp_path, [dense(lr) for lr in ("0.00276", "0.002762", "0.01105", "0.0111", "0.0004883")]
    )
    meta, rows = read(path)
    [entry] = meta["experiments"].values()
    choices = entry["space"]["dimensions"][0]["choices"]
    assert choices == [2**-11, 2**-8.5, 2**-6.5]
    assert [row["config.learning_rate"] for row in rows] == sorted(choices + [2**-8.5, 2**-6.5])


def test_a_learning_rate_off_the_powers_is_kept():
    assert steplaw.snap_learning_rate(0.0012004) == 0.0012


def test_repeated_cells_are_kept_as_seeds(tmp_path):
    path = write(
        tmp_path, [dense("0.00276", loss="2.3"), dense(bs=32), dense("0.002762", loss="2.5")]
    )
    _, rows = read(path)
    assert [(row["config.batch_size"], row["seed"]) for row in rows] == [(32, 0), (64, 0), (64, 1)]
    [experiment] = load(path, tmp_path / "root")
    assert sorted(experiment.outcomes.values_R) == pytest.approx([2.4, 2.5])
    assert experiment.outcomes.noise == pytest.approx(math.sqrt(0.02))


def test_one_experiment_per_size_and_tokens_with_its_own_space(tmp_path):
    path = write(
        tmp_path,
        [dense(), dense(lr="0.0156", bs=32), dense(d=int(1e11), lr="0.0002441"), dense(n=MID)],
    )
    meta, _ = read(path)
    assert list(meta["experiments"]) == [
        "dense-214.7M-4B",
        "dense-214.7M-100B",
        "dense-429.3M-4B",
    ]
    spaces = [
        [d["choices"] for d in e["space"]["dimensions"]] for e in meta["experiments"].values()
    ]
    assert spaces[0] == [[2**-9, 2**-6], [32, 64]]
    assert spaces[1] == [[2**-12], [64]]


def test_sizes_that_round_to_one_name_are_written_out(tmp_path):
    meta, _ = read(write(tmp_path, [dense(), dense(n=LOW + 1)]))
    assert list(meta["experiments"]) == [f"dense-{n}-4000000000" for n in (LOW, LOW + 1)]


@pytest.mark.parametrize(("n", "level"), [(LOW, "low"), (MID, "mid"), (HIGH, "high")])
def test_fidelity_of_a_dense_model(tmp_path, n, level):
    meta, rows = read(write(tmp_path, [dense(n=n)]))
    [entry] = meta["experiments"].values()
    assert entry["fidelity"] == {
        "level": level,
        "parameters": n,
        "tokens": 4000000000,
        "flops": 6.0 * n * 4e9,
    }
    assert rows[0]["flops"] == 6.0 * n * 4e9
    assert entry["context"] == {
        "model": "dense",
        "non_embedding_parameters": n,
        "tokens": 4000000000,
        "sequence_length": 2048,
        "width": 960,
        "mlp_width": 9368,
        "heads": 15,
        "layers": 7,
    }


def test_a_moe_file_is_high_fidelity_by_name_and_tokens(tmp_path):
    lines = [moe(), moe(name="k1e8"), moe(d=2000000000), moe(lr="0.0111", bs=128)]
    meta, rows = read(write(tmp_path, lines, MOE_HEADER, "moe_lr_bs_loss.csv"))
    assert list(meta["experiments"]) == ["moe-k1e8-8B", "moe-k4e16-2B", "moe-k4e16-8B"]
    entry = meta["experiments"]["moe-k4e16-8B"]
    assert entry["fidelity"] == {
        "level": "high",
        "parameters": 2151700000,
        "tokens": 8000000000,
        "flops": 6.0 * 200000000 * 8e9,
    }
    assert entry["context"]["model"] == "moe"
    assert entry["context"]["active_parameters"] == 200000000
    assert entry["context"]["experts"] == 16
    assert len(rows) == 4


def test_both_files_make_one_table_and_either_alone_too(tmp_path):
    both, one = tmp_path / "both", tmp_path / "one"
    both.mkdir(), one.mkdir()
    write(both, [dense()])
    write(both, [moe()], MOE_HEADER, "moe_lr_bs_loss.csv")
    write(one, [moe()], MOE_HEADER, "moe_lr_bs_loss.csv")
    meta, _ = read(both)
    assert list(meta["experiments"]) == ["dense-214.7M-4B", "moe-k4e16-8B"]
    assert set(meta["upstream"]["files"]) == {"dense_lr_bs_loss.csv", "moe_lr_bs_loss.csv"}
    assert list(read(one)[0]["experiments"]) == ["moe-k4e16-8B"]


def test_files_are_found_in_a_clone_and_under_another_name(tmp_path):
    (tmp_path / "data").mkdir()
    clone = write(tmp_path / "data", [dense()])
    assert len(read(tmp_path)[1]) == 1
    part = clone.rename(tmp_path / "part.csv")
    assert len(read(part)[1]) == len(read(tmp_path)[1]) == 1


def test_diverged_runs_keep_their_loss_and_sound_ones_stay_ok(tmp_path):
    losses = ["2.3", "3.2", "6.6", "10.27", "nan", "", "inf"]
    path = write(tmp_path, [dense(bs=16 * (i + 1), loss=y) for i, y in enumerate(losses)])
    _, rows = read(path)
    assert [row["status"] for row in rows] == ["ok"] * 2 + ["diverged"] * 5
    assert rows[2]["loss"] == 6.6
    [experiment] = load(path, tmp_path / "root")
    assert (experiment.outcomes.status_R == "diverged").sum() == 5


def test_an_experiment_where_all_runs_diverged_is_left_out_and_named(tmp_path):
    meta, rows = read(
        write(tmp_path, [dense(), dense(n=MID, loss="6.9"), dense(n=MID, loss="7.3")])
    )
    assert list(meta["experiments"]) == ["dense-214.7M-4B"]
    assert meta["left_out"] == ["dense-429.3M-4B"]
    assert len(rows) == 1


def test_the_default_is_gpt3s_at_the_nearest_measured_cell(tmp_path):
    # At 350M parameters GPT-3 took 3e-4 and 0.5M tokens, 244 sequences.
    cells = [("0.000345", 256), ("0.000345", 32), ("0.00781", 256)]
    meta, _ = read(write(tmp_path, [dense(lr, bs) for lr, bs in cells]))
    [entry] = meta["experiments"].values()
    assert entry["default"] == {"learning_rate": 2**-11.5, "batch_size": 256}
    assert "2005.14165" in entry["default_origin"]


def test_the_default_does_not_depend_on_outcomes(tmp_path):
    cells = [("0.000345", 256), ("0.00195", 64), ("0.00781", 512)]
    defaults = []
    for losses in (("2.1", "2.2", "2.3"), ("2.3", "2.2", "2.1")):
        lines = [dense(lr, bs, loss) for (lr, bs), loss in zip(cells, losses, strict=True)]
        [entry] = read(write(tmp_path, lines))[0]["experiments"].values()
        defaults.append(entry["default"])
    assert defaults[0] == defaults[1]


def test_a_missing_column_is_named(tmp_path):
    path = write(tmp_path, [dense()], DENSE_HEADER.replace("smooth loss", "smoothloss"))
    with pytest.raises(UserError, match="column `smooth loss` is missing"):
        read(path)


def test_a_moe_file_without_its_names_is_not_taken_for_dense(tmp_path):
    path = write(tmp_path, [moe()], MOE_HEADER.replace("moe_name", "name"))
    with pytest.raises(UserError, match="column `moe_name` is missing"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (dense()[:40], "line 3: has fewer fields than the header"),
        (dense() + ",7", "line 3: has more fields than the header"),
        (dense(lr="fast"), "line 3: `lr` is 'fast'; accepted is a number"),
        (dense(loss="low"), "line 3: `smooth loss` is 'low'; accepted is a number"),
        (dense(bs=-64), "line 3: `bs` is -64; accepted is a positive number"),
        (dense(lr="nan"), "line 3: `lr` is nan; accepted is a positive number"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path, [dense(), line])
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value) and "dense_lr_bs_loss.csv" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary", b"PK\x03\x04"])
def test_what_is_no_csv_is_refused(tmp_path, content):
    path = tmp_path / "dense_lr_bs_loss.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="dense_lr_bs_loss.csv"):
        read(path)


def test_a_header_alone_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run in it"):
        read(write(tmp_path, []))


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(UserError, match="dense_lr_bs_loss.csv or moe_lr_bs_loss.csv"):
        read(tmp_path)


def test_the_source_is_registered_under_its_name():
    assert SOURCES["steplaw"] is steplaw.SOURCE
    assert steplaw.SOURCE.file_address("data/x.csv") == (
        "https://raw.githubusercontent.com/step-law/steplaw/"
        "32a8f4cc50247695fb56cc6c9117abdf67c97763/data/x.csv"
    )


def test_the_published_table_imports_as_described(published, tmp_path):
    experiments = load(published("steplaw"), tmp_path)
    levels = {
        level: [e for e in experiments if e.fidelity.level == level] for level in tables.LEVELS
    }
    assert len(levels["low"]) >= 8 and len(levels["mid"]) >= 4
    for experiment in levels["low"] + levels["mid"]:
        learning_rates = experiment.space["learning_rate"].choices
        assert len(learning_rates) <= 14
        # A lower-is-better loss of a trained model, with the optimum inside the grid.
        assert 2.0 < experiment.outcomes.optimum < experiment.outcomes.median < 3.0
        best = experiment.configurations[experiment.outcomes.best_row]
        assert learning_rates[0] < best["learning_rate"] < learning_rates[-1]
        assert (experiment.outcomes.status_R[experiment.outcomes.values_R < 4] == "ok").all()
        assert (experiment.outcomes.status_R[experiment.outcomes.values_R > 5] == "diverged").all()
