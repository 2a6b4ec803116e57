import hashlib

import pytest

from autollm_jax.errors import UserError
from autollm_jax.sources.csv_file import finite_number, read_csv

TEXT = "index,loss\n1,2.5\n2,2.25\n"


def read(tmp_path, data: bytes):
    path = tmp_path / "table.csv"
    path.write_bytes(data)
    return [row for _, row in read_csv(path, ("index", "loss"), "made")[1]]


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        b"loss,index\n2.5,1\n2.25,2\n",
        b'index , loss\n"1",2.5\n\n2,2.25\n',
    ],
)
def test_line_ends_marks_quotes_and_order_do_not_matter(tmp_path, data):
    assert read(tmp_path, data) == [{"index": "1", "loss": "2.5"}, {"index": "2", "loss": "2.25"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-16"), "not UTF-8 text"),
        (TEXT.encode("utf-16-le"), "not UTF-8 text"),
        (TEXT.encode().replace(b"2.5", b"2\xff5"), "not UTF-8 text"),
        (TEXT.replace(",", ";").encode(), "separated by semicolons; accepted are commas"),
        (TEXT.replace(",", "\t").encode(), "separated by tabs; accepted are commas"),
        (b"index,value\n1,2\n", "column `loss` is missing; made files have the columns index, lo"),
        (b"index,loss,loss\n1,2,3\n", "column `loss` comes twice"),
        (b"", "column `index` is missing"),
        (b"PK\x03\x04\x00", "not UTF-8 text"),
        (b"index,loss\n1,2.5\n2\n", "line 3: has fewer fields than the header"),
        (b"index,loss\n1,2.5,7\n", "line 2: has more fields than the header"),
        (b'index,loss\n1,"2.5\n', "not a readable CSV file: unexpected end of data"),
    ],
)
def test_what_is_not_as_published_is_one_clear_line(tmp_path, data, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value) and "table.csv" in str(error.value)


UNENDED = b"index,loss\n1,2.5\n2,2.2"


def test_a_pinned_file_is_whole_however_its_last_line_ends(tmp_path, caplog):
    path = tmp_path / "table.csv"
    path.write_bytes(UNENDED)
    pinned = {hashlib.sha256(UNENDED).hexdigest()}
    rows = [row for _, row in read_csv(path, ("index", "loss"), "made", pinned)[1]]
    assert rows == [{"index": "1", "loss": "2.5"}, {"index": "2", "loss": "2.2"}]
    assert not caplog.messages


def test_in_another_file_a_last_row_that_may_be_cut_is_left_out_and_named(tmp_path, caplog):
    assert read(tmp_path, UNENDED) == [{"index": "1", "loss": "2.5"}]
    (said,) = caplog.messages
    assert "table.csv: line 3: the last line has no line end" in said and "\n" not in said


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UserError, match="not a readable CSV file"):
            read_csv(path, (), "made")


@pytest.mark.parametrize("text", ["nan", "inf", "", "2,5", "-1"])
def test_a_finite_number_is_one(text):
    with pytest.raises(UserError, match="line 2: `loss` is"):
        finite_number(text, "loss", "table.csv: line 2", least=0.0)
