import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autollm_jax.errors import UserError
from autollm_jax.evaluation.run_costs import read_runs
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments


def meta(space):
    return {
        "format": 1,
        "source": "test",
        "task": "pretraining",
        "licence": "none",
        "experiments": {
            "one": {
                "context": {"width": 64},
                "fidelity": {"level": "low", "parameters": 1, "tokens": 2, "flops": 12},
                "space": space.to_json(),
                "objective": {"metric": "loss", "goal": "minimize"},
                "default": {"learning_rate": 0.001, "batch_size": 32},
                "default_origin": "the tests",
            }
        },
    }


def row(**changes):
    return {
        "experiment": "one",
        "config.learning_rate": 0.001,
        "config.batch_size": 32,
        "loss": 2.5,
        "flops": 12.0,
        "seconds": None,
        "seed": 0,
        "status": "ok",
    } | changes


@pytest.fixture
def table_path(tmp_path, space):
    rows = [row(), row(loss=2.25, seed=1), row(loss=math.nan, status="diverged", seed=2)]
    return tables.write_table(tmp_path, meta(space), rows)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_a_table_reads_back_as_written(table_path, space):
    table = tables.read_table(table_path)
    assert table.meta == meta(space)
    assert table.rows["loss"].to_pylist()[:2] == [2.5, 2.25]
    assert tables.find_tables([table_path.parent.parent]) == [table_path]


def test_columns_that_only_later_rows_have_are_kept(tmp_path, space):
    path = tables.write_table(tmp_path, meta(space), [row(), row(device="cpu")])
    assert tables.read_table(path).rows["device"].to_pylist() == [None, "cpu"]


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_a_missing_file_is_named(table_path, suffix):
    table_path.with_suffix(suffix).unlink()
    assert tables.find_tables([table_path.parent.parent]) == [table_path]
    with pytest.raises(UserError) as error:
        tables.read_table(table_path)
    assert f"pretraining{suffix}: missing" in one_line(error)


def test_stray_files_are_ignored_and_named_once(tmp_path, space, caplog):
    table_path = tables.write_table(tmp_path, meta(space), [row()])
    folder, root = table_path.parent, table_path.parent.parent
    (folder / "notes.json").write_text("{}")
    (folder / "list.json").write_text("[1]")
    pq.write_table(pa.table({"experiment": ["a"], "x": [1]}), folder / "extra.parquet")
    for _ in range(2):
        assert tables.find_tables([root]) == [table_path]
    assert sorted(m.split(": ")[0] for m in caplog.messages) == [
        str(folder / name) for name in ("extra.parquet", "list.json", "notes.json")
    ]
    assert all("\n" not in message for message in caplog.messages)
    assert [e.id for e in load_experiments([root])] == ["test/pretraining/one"]


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "exper', ""])
def test_a_lone_file_that_may_be_half_a_table_is_an_error(table_path, content):
    (table_path.parent / "half.json").write_text(content)
    with pytest.raises(UserError, match="half.parquet: missing"):
        load_experiments([table_path.parent.parent])


def test_one_root_may_be_given_alone_and_from_the_home_folder(tmp_path, space, monkeypatch):
    root = tmp_path / "root"
    tables.write_table(root, meta(space), [row()])
    monkeypatch.setenv("HOME", str(root.parent))
    for roots in (str(root), root, [root], f"~/{root.name}", (f"~/{root.name}",)):
        assert [e.id for e in load_experiments(roots)] == ["test/pretraining/one"]
    with pytest.raises(UserError, match="^nowhere: no such folder"):
        load_experiments("nowhere")


@pytest.mark.parametrize("seeds", [[None, 0, 1], [None, None, None], [0, 0, None]])
def test_a_run_whose_seed_is_not_known_is_a_run_of_its_own(tmp_path, space, seeds):
    rows = [row(seed=seed, loss=loss) for seed, loss in zip(seeds, (1.0, 2.0, 6.0), strict=True)]
    tables.write_table(tmp_path, meta(space), rows)
    (one,) = load_experiments([tmp_path])
    assert one.outcomes.values_R.tolist() == [3.0] and one.outcomes.noise > 0
    (costs,) = read_runs([tmp_path], [one]).values()
    assert len(costs) == len(rows) - (seeds[0] == 0)  # two rows of one seed are one run


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("flops", -1.0),
        ("flops", math.nan),
        ("flops", math.inf),
        ("seconds", -0.5),
        ("seconds", math.inf),
        ("seed", -3),
        ("parameters", -1),
        ("parameters", math.nan),
    ],
)
def test_an_amount_that_none_can_be_is_refused_by_column_and_row(tmp_path, space, column, value):
    rows = [row(parameters=1), row(parameters=1, seed=1) | {column: value}]
    with pytest.raises(
        UserError, match=rf"test/pretraining.parquet: `{column}` is .* in row 2;"
    ) as e:
        tables.write_table(tmp_path, meta(space), rows)
    assert f"is {value} in" in one_line(e)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        tables.find_tables([tmp_path / "nowhere"])


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_named(table_path, suffix, part):
    path = table_path.with_suffix(suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError) as error:
        tables.read_table(table_path)
    assert path.name in one_line(error) and "truncated?" in one_line(error)


def test_a_flipped_byte_in_the_outcomes_is_noticed(table_path):
    rows = tables.read_table(table_path).rows
    # Uncompressed, a flipped bit of a loss would go unnoticed but for the page's checksum.
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(buffer.getvalue().to_pybytes())
    place = bytes(data).index(pa.array([2.5, 2.25]).buffers()[1].to_pybytes()[:16])
    data[place + 6] ^= 1
    table_path.write_bytes(data)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        tables.read_table(table_path)


@pytest.mark.parametrize(
    "column", ["experiment", "status", "seed", "flops", "seconds", "loss", "config.batch_size"]
)
def test_a_missing_column_is_named(table_path, column):
    rows = tables.read_table(table_path).rows
    pq.write_table(rows.drop_columns([column]), table_path)
    with pytest.raises(UserError, match=f"column `{column}` is missing"):
        tables.read_table(table_path)


@pytest.mark.parametrize("column", ["loss", "seed", "flops", "config.learning_rate"])
def test_a_column_of_a_wrong_type_is_named(table_path, column):
    rows = tables.read_table(table_path).rows
    place = rows.column_names.index(column)
    pq.write_table(rows.set_column(place, column, pa.array(["a", "b", "c"])), table_path)
    with pytest.raises(UserError, match=f"column `{column}` is of type string"):
        tables.read_table(table_path)


@pytest.mark.parametrize("outcome", [math.nan, math.inf, None])
def test_an_ok_row_without_an_outcome_is_refused(tmp_path, space, outcome):
    with pytest.raises(UserError, match=r"`loss` is (nan|inf|None) in row 2 \(experiment one\)"):
        tables.write_table(tmp_path, meta(space), [row(), row(loss=outcome)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "fine"}, "unknown status 'fine' in row 2; accepted are ok, diverged"),
        ({"status": None}, "unknown status None"),
        ({"experiment": "two"}, "unknown experiment 'two' in row 2"),
        ({"seed": "first"}, "column `seed`"),
    ],
)
def test_an_unknown_value_is_named(tmp_path, space, change, message):
    with pytest.raises(UserError, match=message):
        tables.write_table(tmp_path, meta(space), [row(), row(**change)])


def set_in(value, path, new):
    *parents, last = path
    for key in parents:
        value = value[key]
    if new is None:
        del value[last]
    else:
        value[last] = new


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (("format",), 2, "field `format` is 2; accepted are 1"),
        (("source",), None, "field `source` is missing"),
        (("task",), "a/b", "task 'a/b'"),
        (("source",), "other", "says it is other/pretraining, but it lies at test/pretraining"),
        (("experiments",), [], "field `experiments` is a list"),
        (("experiments", "one"), 3, "experiment one: is a int"),
        (("experiments", "one", "fidelity"), None, "field `fidelity` is missing"),
        (("experiments", "one", "fidelity", "level"), "huge", "accepted are low, mid, high"),
        (("experiments", "one", "fidelity", "flops"), "much", "field `flops` is a str"),
        (("experiments", "one", "fidelity", "flops"), -1, "0 or more"),
        (("experiments", "one", "objective", "goal"), "min", "accepted are minimize, maximize"),
        (("experiments", "one", "default", "batch_size"), 33.7, "default configuration is invalid"),
        (("experiments", "one", "space", "dimensions"), [], "a space needs dimensions"),
    ],
)
def test_a_bad_field_is_named(table_path, space, path, new, message):
    value = meta(space)
    set_in(value, path, new)
    table_path.with_suffix(".json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=message) as error:
        tables.read_table(table_path)
    one_line(error)


def test_a_refused_table_overwrites_nothing(table_path, space):
    before = table_path.read_bytes()
    with pytest.raises(UserError):
        tables.write_table(table_path.parent.parent, meta(space), [row(status="fine")])
    assert table_path.read_bytes() == before
    assert len(list(table_path.parent.iterdir())) == 2
