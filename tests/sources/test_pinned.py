"""A file as published is whole, however its last line ends; each CSV source knows its own."""

import dataclasses

import pytest

from autollm_jax.sources import admire, regmix, steplaw
from autollm_jax.sources.download import sha256_of
from tests.sources import test_admire, test_regmix, test_steplaw


def steplaw_files(write_csv, folder):
    return [test_steplaw.write(folder, [test_steplaw.dense(lr) for lr in ("0.00276", "0.0111")])]


def admire_files(write_csv, folder):
    return [write_csv(admire.FILE, [test_admire.run(flan=1.0), test_admire.run(aya=1.0)])]


def regmix_files(write_csv, folder):
    rows = {"mixture": test_regmix.MIXTURES[:2], "pile_loss": test_regmix.LOSSES[:2]}
    return [write_csv(f"test_{kind}_60m.csv", rows[kind]) for kind in rows]


@pytest.mark.parametrize("is_pinned", [True, False])
@pytest.mark.parametrize(
    ("module", "files"),
    [(steplaw, steplaw_files), (admire, admire_files), (regmix, regmix_files)],
    ids=["steplaw", "admire", "regmix"],
)
def test_the_last_row_counts_in_a_pinned_file(
    module, files, is_pinned, write_csv, tmp_path, monkeypatch, caplog
):
    hashes = {}
    for path in files(write_csv, tmp_path):
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
        hashes[path.name] = sha256_of(path)
    if is_pinned:
        source = dataclasses.replace(module.SOURCE, files=hashes)
        monkeypatch.setattr(module, "SOURCE", source)
    [(_, rows)] = module.read(tmp_path)
    runs = {row["run"] for row in rows}
    assert len(runs) == 1 + is_pinned
    assert len(caplog.messages) == (0 if is_pinned else len(hashes))
