import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.sources import regmix

OTHERS = {regmix.MIXTURE_COLUMN.format(domain): 0.0 for domain in regmix.DOMAINS}


def mixture(index, **weights):
    named = {regmix.MIXTURE_COLUMN.format(domain): w for domain, w in weights.items()}
    return {"index": index} | OTHERS | named


def loss(index, value, **losses):
    values = dict.fromkeys(regmix.LOSS_DOMAINS, value) | losses
    return {"index": index} | {regmix.LOSS_COLUMN.format(d): y for d, y in values.items()}


MIXTURES = [mixture(1, arxiv=0.602, github=0.4), mixture(2, pile_cc=1.0), mixture(3, arxiv=1)]
LOSSES = [loss(1, 4.0, arxiv=3.0), loss(2, 5.0), loss(3, 6.0, github=9.0)]


@pytest.fixture
def write(write_csv):
    def write(size="60m", part="test", mixtures=MIXTURES, losses=LOSSES, **where):
        write_csv(f"{part}_pile_loss_{size}.csv", losses, **where)
        return write_csv(f"{part}_mixture_{size}.csv", mixtures, **where)

    return write


def load(path, root):
    [(meta, rows)] = regmix.read(path)
    tables.write_table(root, meta, rows)
    return {e.name: e for e in load_experiments([root])}


def test_an_experiment_is_a_size_and_an_objective(write, tmp_path):
    write()
    experiments = load(tmp_path, tmp_path / "root")
    assert len(experiments) == 14 and len(regmix.LOSS_DOMAINS) == 13
    mean, arxiv = experiments["60M_mean"], experiments["60M_arxiv"]
    np.testing.assert_allclose(mean.outcomes.values_R, [51 / 13, 5, 81 / 13])
    np.testing.assert_allclose(arxiv.outcomes.values_R, [3, 5, 6])
    assert (mean.objective.metric, arxiv.objective.metric) == ("loss", "loss.arxiv")
    assert (mean.facts["objective"], arxiv.facts["objective"]) == ("mean", "arxiv")
    assert mean.objective.minimize and mean.cells is arxiv.cells


@pytest.mark.parametrize(("size", "level"), [("1m", "low"), ("60m", "mid"), ("1B", "high")])
def test_fidelity_follows_from_the_size(write, tmp_path, size, level):
    write(size)
    fidelity = load(tmp_path, tmp_path / "root")[f"{size.upper()}_mean"].fidelity
    assert fidelity.level == level
    assert fidelity.flops == 6 * fidelity.parameters * fidelity.tokens > 0


def test_weights_that_sum_to_about_one_are_normalised(write, tmp_path):
    write()
    config = load(tmp_path, tmp_path / "root")["60M_mean"].configurations[0]["mixture"]
    assert config["arxiv"] == pytest.approx(0.602 / 1.002)
    assert sum(config.values()) == pytest.approx(1.0, abs=1e-12)


def test_rows_and_columns_may_come_in_any_order(write, tmp_path):
    write()
    [(_, expected)] = regmix.read(tmp_path)
    columns = ["index", *reversed(OTHERS)]
    shuffled = tmp_path / "test_mixture_60m.csv"
    lines = [",".join(columns)]
    lines += [",".join(str(row[c]) for c in columns) for row in reversed(MIXTURES)]
    shuffled.write_text("\r\n".join(lines) + "\r\n")
    [(_, rows)] = regmix.read(tmp_path)
    key = lambda row: (row["experiment"], row["run"])  # noqa: E731
    assert sorted(rows, key=key) == sorted(expected, key=key)


def test_train_and_test_mixtures_of_one_size_are_one_experiment(write, tmp_path):
    write("1m", "train")
    write("1m", "test", [mixture(1, europarl=1.0)], [loss(1, 7.0)])
    [(meta, rows)] = regmix.read(tmp_path)
    assert len(meta["upstream"]["files"]) == 4
    mean = [row for row in rows if row["experiment"] == "1M_mean"]
    assert sorted(row["run"] for row in mean) == ["test/1", "train/1", "train/2", "train/3"]


def test_a_part_of_the_rows_is_joined_by_index_and_the_rest_counted(write, tmp_path):
    write(losses=LOSSES[1:])
    [(meta, rows)] = regmix.read(tmp_path)
    assert {row["run"] for row in rows} == {"test/2", "test/3"}
    assert meta["left_out"] == ["1 rows of test 60M in one file only"]


def test_the_default_is_the_measured_mixture_nearest_to_the_piles(write, tmp_path):
    near = {d: round(w / 75.02, 3) for d, w in regmix.PILE_WEIGHTS.items()}
    write(mixtures=[*MIXTURES, mixture(4, **near)], losses=[*LOSSES, loss(4, 6.5)])
    experiment = load(tmp_path, tmp_path / "root")["60M_mean"]
    assert experiment.match(experiment.default) == (3, False)
    assert "2101.00027" in experiment.default_origin


def test_the_piles_weights_are_those_of_its_other_domains_left_out():
    # Books3, OpenWebText2, OpenSubtitles, BookCorpus2 and YouTube subtitles are not in RegMix.
    assert sum(regmix.PILE_WEIGHTS.values()) == pytest.approx(
        100 - 12.07 - 10.01 - 1.55 - 0.75 - 0.60, abs=0.05
    )


def test_a_pair_is_found_by_one_of_its_files_and_in_a_clone(write, tmp_path):
    (tmp_path / "data").mkdir()
    path = write(folder=tmp_path / "data")
    write("1m", folder=tmp_path / "data")
    assert len(regmix.read(path)[0][1]) == 3 * 14
    assert len(regmix.read(tmp_path)[0][1]) == 6 * 14


def test_a_file_without_its_partner_is_named(write, tmp_path):
    write().unlink()
    with pytest.raises(UserError, match="test_pile_loss_60m.csv: test_mixture_60M.csv is not bes"):
        regmix.read(tmp_path)


def test_a_folder_or_file_of_something_else_is_named(tmp_path):
    (tmp_path / "dense.csv").write_text("a\n")
    for path in (tmp_path, tmp_path / "dense.csv", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no RegMix file; accepted is a folder with"):
            regmix.read(path)


def test_an_unknown_size_is_named(write, tmp_path):
    write("7b")
    with pytest.raises(UserError, match="_7b.csv: size 7b; accepted are 1M, 60M, 1B"):
        regmix.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixtures": [mixture(1, arxiv=0.5)]}, "line 2: the weights sum to 0.5; accepted is ab"),
        ({"mixtures": [mixture(1, arxiv=-1)]}, "`train_the_pile_arxiv` is -1; accepted is a fin"),
        ({"mixtures": [mixture(1, arxiv="nan")]}, "`train_the_pile_arxiv` is nan"),
        ({"mixtures": [mixture(1, arxiv=1)] * 2}, "line 3: `index` 1 comes twice"),
        ({"losses": [loss(1, "")]}, "`metric/the_pile_arxiv_val_loss` is ''; accepted is a num"),
        ({"losses": [loss(1, "nan")]}, "`metric/the_pile_arxiv_val_loss` is nan"),
        ({"losses": [loss(1.5, 3)]}, "`index` 1.5 is no whole number"),
        ({"losses": [loss(9, 3)]}, "shares no `index` with test_mixture_60m.csv"),
        ({"losses": MIXTURES}, "column `metric/the_pile_arxiv_val_loss` is missing"),
        ({"mixtures": LOSSES}, "column `train_the_pile_arxiv` is missing"),
    ],
)
def test_what_is_not_as_published_is_one_clear_line(write, tmp_path, changes, message):
    write(**changes)
    with pytest.raises(UserError, match=message) as error:
        regmix.read(tmp_path)
    assert "\n" not in str(error.value)


def test_the_published_files_import_as_described(published, tmp_path):
    folder = published("regmix")
    [(meta, rows)] = regmix.read(folder)
    pinned = set(regmix.SOURCE.files.values())
    assert set(meta["upstream"]["files"].values()) <= pinned and not meta["left_out"]
    experiments = load(folder, tmp_path)
    assert len(experiments) >= 28
    low, mid = experiments["1M_mean"], experiments["60M_mean"]
    assert (len(low.configurations), len(mid.configurations)) == (768, 256)
    keys = {low.space.key_of(c) for c in low.configurations}
    assert all(mid.space.key_of(c) in keys for c in mid.configurations)
    assert (
        4 < low.outcomes.optimum < low.outcomes.median < 6
        and 3 < mid.outcomes.optimum < mid.outcomes.median < 5
    )
