"""Every form of an upstream repository gives the same table; a hostile one gives one clear line."""

import dataclasses
import io
import pathlib
import subprocess
import tarfile
import zipfile

import pytest

from autollm_jax.errors import UserError
from autollm_jax.sources import autoresearch, steplaw, upstream
from autollm_jax.sources.upstream import upstream_folder

from . import autoresearch_files
from .autoresearch_files import trial

CSV = "lr,bs,smooth loss,N,D\n0.00276,64,2.5,214663680,4e9\n0.00391,64,2.4,214663680,4e9\n"
CSV_BYTES = CSV.encode()


def steplaw_repository(folder):
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "dense_lr_bs_loss.csv").write_text(CSV)


def autoresearch_repository(folder):
    # Two files of one name: where they lie says which is which.
    for seed in (0, 1):
        lines = [trial(0.9 + seed / 10), trial(1.0, MATRIX_LR=0.1)]
        autoresearch_files.write(folder, f"results/random/seed_{seed}", lines)


REPOSITORIES = {
    "steplaw": (steplaw.SOURCE, steplaw_repository, "data"),
    "autoresearch": (autoresearch.SOURCE, autoresearch_repository, "results"),
}


@pytest.fixture(params=REPOSITORIES)
def repository(request, tmp_path):
    """Return (source, its repository in miniature, the name of its data folder)."""
    source, make, data = REPOSITORIES[request.param]
    folder = tmp_path / f"{source.name}-{source.commit}"
    make(folder)
    (folder / "README.md").write_text("other files are left alone\n")
    return source, folder, data


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def committed(source, folder):
    """Commit the repository, then remove its files; return the source pinned to that commit."""
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "published")
    pinned = dataclasses.replace(source, commit=git(folder, "rev-parse", "HEAD"))
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".jsonl"):
            path.unlink()
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "moved on")
    return pinned


def zipped(folder, path, top=True):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent if top else folder))
    return path


def tarred(folder, path, name=None):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name if name is None else name)
    return path


def read(source, path):
    with upstream_folder(path, source) as folder:
        return source.read(folder)


def rows_of(source, path):
    [(meta, rows)] = read(source, path)
    return meta["experiments"], rows


def test_every_form_gives_the_same_rows(repository, tmp_path):
    source, folder, data = repository
    expected = rows_of(source, folder)
    assert len(expected[1]) >= 2
    forms = {
        "data folder": folder / data,
        "zip": zipped(folder, tmp_path / "a.zip"),
        "zip without a top folder": zipped(folder, tmp_path / "b.ZIP", top=False),
        "tar.gz": tarred(folder, tmp_path / "a.tar.gz"),
        "tgz of .": tarred(folder, tmp_path / "a.tgz", "."),
        "zip of the data folder": zipped(folder / data, tmp_path / "d.zip", top=False),
        "zip of the named data folder": zipped(folder / data, tmp_path / "e.zip"),
    }
    for form, path in forms.items():
        assert rows_of(source, path) == expected, form
    git(folder, "init", "-q")  # a checkout whose working tree has the files
    assert rows_of(source, folder) == expected


@pytest.mark.parametrize("bare", [False, True])
def test_a_checkout_that_has_moved_on_is_read_at_the_pinned_commit(repository, tmp_path, bare):
    source, folder, _ = repository
    expected = rows_of(source, folder)
    pinned = committed(source, folder)
    if bare:
        git(tmp_path, "clone", "-q", "--bare", str(folder), str(tmp_path / "bare"))
        folder = tmp_path / "bare"
    before = sorted(folder.rglob("*"))
    assert rows_of(pinned, folder) == expected
    assert sorted(folder.rglob("*")) == before


def test_a_shallow_clone_is_one_clear_line(repository, tmp_path):
    source, folder, _ = repository
    pinned = committed(source, folder)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", folder.as_uri(), str(shallow))
    with pytest.raises(UserError, match="whole history, a checkout of that commit, or its arch"):
        read(pinned, shallow)


def test_a_checkout_without_the_git_program_is_one_clear_line(repository, monkeypatch, tmp_path):
    source, folder, _ = repository
    pinned = committed(source, folder)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="the program git is not installed"):
        read(pinned, folder)


def test_files_in_a_checkout_of_something_else_are_read_with_a_warning(tmp_path, caplog):
    (tmp_path / "dense_lr_bs_loss.csv").write_text(CSV)
    git(tmp_path, "init", "-q")
    assert len(rows_of(steplaw.SOURCE, tmp_path)[1]) == 2
    assert "the files of its working tree are read" in caplog.text


def test_a_checkout_executes_nothing_that_its_settings_name(repository, tmp_path):
    source, folder, data = repository
    pinned, trace = committed(source, folder), tmp_path / "executed"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {trace}\ncat\n")
    script.chmod(0o755)
    attributes = folder / ".git" / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("* filter=hostile diff=hostile\n")
    for key in ("filter.hostile.smudge", "diff.hostile.textconv", "core.fsmonitor", "core.pager",
                "core.sshCommand", "core.alternateRefsCommand"):  # fmt: skip
        git(folder, "config", key, str(script))
    # This is what smudges: the settings are live.
    subprocess.run(
        ["git", "-C", str(folder), "archive", pinned.commit, data], check=True, capture_output=True
    )
    assert trace.exists()
    trace.unlink()
    assert len(rows_of(pinned, folder)[1]) >= 2
    assert not trace.exists()


def member(name, data=CSV_BYTES, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def hostile_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def hostile_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            name = zipfile.ZipInfo(info.name)
            name.external_attr = (0o120777 if info.type == tarfile.SYMTYPE else 0o100644) << 16
            archive.writestr(name, info.linkname or data)
    return path


@pytest.mark.parametrize("make", [hostile_tar, hostile_zip])
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../data/dense_lr_bs_loss.csv", tarfile.REGTYPE, "leads out of it"),
        ("repo/../../x", tarfile.REGTYPE, "leads out of it"),
        ("/tmp/data/dense_lr_bs_loss.csv", tarfile.REGTYPE, "leads out of it"),
        ("repo\\..\\x", tarfile.REGTYPE, "leads out of it"),
        ("repo/data/dense_lr_bs_loss.csv", tarfile.SYMTYPE, "is a link or a device"),
        ("repo/data/dense_lr_bs_loss.csv", tarfile.LNKTYPE, "is a link or a device"),
        ("repo/data/dense_lr_bs_loss.csv", tarfile.FIFOTYPE, "is a link or a device"),
        ("repo/data/dense_lr_bs_loss.csv", tarfile.CHRTYPE, "is a link or a device"),
        ("repo/data/moe_lr_bs_loss.csv/x", tarfile.REGTYPE, "has none of the upstream files"),
        ("repo/other.csv", tarfile.SYMTYPE, "has none of the upstream files"),
    ],
)
def test_hostile_members_are_refused_and_nothing_is_written(tmp_path, make, name, kind, message):
    if make is hostile_zip and kind not in (tarfile.REGTYPE, tarfile.SYMTYPE):
        pytest.skip("a zip has no such members")
    outside = tmp_path / "outside.csv"
    outside.write_text(CSV)
    special = kind != tarfile.REGTYPE
    link = str(outside) if special else ""
    path = make(tmp_path / f"a{'.zip' if make is hostile_zip else '.tar.gz'}",
                [member(name, b"" if special else CSV.encode(), kind, link)])  # fmt: skip
    before = {p: p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=message) as error:
        read(steplaw.SOURCE, path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_a_file_that_comes_twice_is_refused(tmp_path):
    twice = [member("repo/data/dense_lr_bs_loss.csv"), member("data/dense_lr_bs_loss.csv")]
    for make, name in ((hostile_tar, "a.tar.gz"), (hostile_zip, "a.zip")):
        with pytest.raises(UserError, match="comes twice"):
            read(steplaw.SOURCE, make(tmp_path / name, twice))


@pytest.mark.parametrize("end", [".zip", ".tar.gz"])
@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MOST_FILE_BYTES", 100, "has 101 bytes; accepted are"),
        ("MOST_BYTES", 150, "has 101 bytes; accepted are"),
        ("MOST_MEMBERS", 2, "it has over 2 members"),
        ("MOST_TAR_BYTES", 20_000, "it unpacks to over"),
    ],
)
def test_bombs_are_refused(tmp_path, monkeypatch, end, limit, value, message):
    zero = b"\0" * 50_000 if limit == "MOST_TAR_BYTES" else b""
    members = [member(f"r/data/{name}_lr_bs_loss.csv", b"x" * 101) for name in ("dense", "moe")]
    members += [member("r/other", zero)]
    path = (hostile_zip if end == ".zip" else hostile_tar)(tmp_path / f"a{end}", members)
    monkeypatch.setattr(upstream, limit, value)
    if end == ".zip" and limit == "MOST_TAR_BYTES":
        # Of a zip only the wanted members are unpacked.
        message = "column `N` is missing"
    with pytest.raises(UserError, match=message):
        read(steplaw.SOURCE, path)


@pytest.mark.parametrize("end", [".zip", ".tar.gz"])
def test_a_damaged_or_truncated_archive_is_one_clear_line(repository, tmp_path, end):
    source, folder, _ = repository
    path = (zipped if end == ".zip" else tarred)(folder, tmp_path / f"a{end}")
    whole = path.read_bytes()
    half = len(whole) // 2
    flipped = bytes([whole[half] ^ 255])
    for damaged in (b"", b"x" * 600, whole[:half], whole[:-9],
                    whole[:half] + flipped + whole[half + 1 :]):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            read(source, path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_an_encrypted_zip_is_one_clear_line(tmp_path):
    path = hostile_zip(tmp_path / "a.zip", [member("data/dense_lr_bs_loss.csv")])
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a readable .zip archive.*encrypted"):
        read(steplaw.SOURCE, path)


def test_errors_inside_an_archive_name_the_archive(tmp_path):
    path = hostile_zip(tmp_path / "a.zip", [member("data/dense_lr_bs_loss.csv", b"lr\n")])
    with pytest.raises(UserError) as error:
        read(steplaw.SOURCE, path)
    assert str(error.value).startswith(f"{path}/data/dense_lr_bs_loss.csv: column")


def test_a_file_that_is_no_archive_and_a_missing_one_are_given_as_they_are(tmp_path):
    for path in (tmp_path / "runs.csv", pathlib.Path("nowhere.zip")):
        with upstream_folder(path, steplaw.SOURCE) as given:
            assert given == path
