import dataclasses
import hashlib

import pytest

from autollm_jax.errors import UserError
from autollm_jax.sources import steplaw
from autollm_jax.sources.download import download, hand_placed, sha256_of

CONTENT = b"published\n"


@pytest.fixture
def source(tmp_path):
    """A source whose upstream is a folder."""
    folder = tmp_path / "upstream" / "pinned" / "data"
    folder.mkdir(parents=True)
    (folder / "table.csv").write_bytes(CONTENT)
    return dataclasses.replace(
        steplaw.SOURCE,
        raw_address=(tmp_path / "upstream").as_uri(),
        commit="pinned",
        files={"data/table.csv": hashlib.sha256(CONTENT).hexdigest()},
    )


def test_files_are_fetched_and_checked(source, tmp_path):
    download(source, tmp_path)
    assert (tmp_path / "table.csv").read_bytes() == CONTENT
    assert sha256_of(tmp_path / "table.csv") == source.files["data/table.csv"]


def test_files_of_one_name_keep_their_paths_and_others_lie_flat(source, tmp_path):
    for seed in (0, 1):
        path = tmp_path / "upstream" / "pinned" / "data" / f"seed_{seed}" / "trials.jsonl"
        path.parent.mkdir()
        path.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    files = {f"data/seed_{seed}/trials.jsonl": digest for seed in (0, 1)}
    source = dataclasses.replace(source, files=files)
    download(source, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.jsonl")}
    assert found == set(files)
    assert hand_placed(source, "x") == {source.file_address(f): f"x/{f}" for f in files}


def test_many_files_are_asked_for_as_one_archive(source, tmp_path):
    source = dataclasses.replace(source, files={f"data/{n}.csv": "0" * 64 for n in range(11)})
    assert hand_placed(source, "downloads/mine") == {
        f"{source.address}/archive/pinned.zip": "downloads/mine.zip"
    }
    source = dataclasses.replace(source, raw_address="http://127.0.0.1:9")
    with pytest.raises(UserError, match="fetch .*/archive/pinned.zip by hand .* --path=FILE"):
        download(source, tmp_path)


def test_another_hash_is_refused(source, tmp_path):
    source = dataclasses.replace(source, files={"data/table.csv": "0" * 64})
    with pytest.raises(
        UserError, match="table.csv: SHA-256 is .*, expected 000.*nothing was imported"
    ):
        download(source, tmp_path)


def test_without_a_connection_the_files_to_fetch_are_named(source, tmp_path):
    # Nothing listens on the discard port of this machine.
    source = dataclasses.replace(source, raw_address="http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        download(source, tmp_path)
    text = str(error.value)
    assert "http://127.0.0.1:9/pinned/data/table.csv" in text and "--path=" in text
    assert "\n" not in text
