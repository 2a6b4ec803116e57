"""Import public tables as outcome tables.

    python launch/import_data.py --source=steplaw --out=ROOT
    python launch/import_data.py --source=steplaw --path=PATH --out=ROOT
    python launch/import_data.py --source=all [--path=DIR] --out=ROOT

Without --path the upstream files are downloaded at a pinned commit and their SHA-256 is checked.
With --path they are read as published; other rows, or fewer, are fine. PATH is a file, a folder
with the files, the upstream repository as a folder or a git checkout (whose objects are read at the
pinned commit where its working tree lacks the files), or GitHub's archive of it (.zip, .tar.gz).
`all` imports every source, with --path from DIR/SOURCE, DIR/SOURCE.zip or DIR/SOURCE.tar.gz; if
one fails, the others still are.
Writes ROOT/SOURCE/TASK.parquet and ROOT/SOURCE/TASK.json.
"""

import collections
import pathlib
import sys
import tempfile

from absl import flags

from autollm_jax import command_line
from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.sources import SOURCES
from autollm_jax.sources.download import MOST_LISTED, DownloadError, download, hand_placed
from autollm_jax.sources.source import Source, Tables
from autollm_jax.sources.upstream import ARCHIVE_ENDS, upstream_folder

# The folder that messages propose for files that could not be downloaded.
BY_HAND = "downloads"

FLAGS = flags.FLAGS
flags.DEFINE_string("source", None, f"Table to import: {', '.join(SOURCES)}, or all.")
command_line.define_path("path", None, "Files as published, see above; downloaded if not given.")
command_line.define_path("out", None, "Folder of outcome tables to write into.")


def import_source(source: Source, path: str | None, out: str) -> None:
    """Read a source's files, write its outcome tables under `out`, and print a summary."""
    print(f"{source.name}: {source.address} at {source.commit}\nlicence: {source.licence}")
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            download(source, pathlib.Path(folder))
            imported = source.read(pathlib.Path(folder))
    else:
        with upstream_folder(path, source) as folder:
            imported = source.read(folder)
    for meta, rows in imported:
        try:
            written = tables.write_table(out, meta, rows)
        except OSError as error:
            raise UserError(f"{out}: cannot be written: {error}; give another --out") from error
        print(f"wrote {written} and {written.with_suffix('.json').name}")
    _summarise(source, imported)


def import_all(path: str | None, out: str) -> None:
    """Import every source, from `path`/SOURCE or an archive of that name if a path is given.

    A source that fails is reported, and the next one is imported.

    Raises:
      UserError: at least one source was not imported.
    """
    failed = []
    for source in SOURCES.values():
        try:
            import_source(source, None if path is None else _path_of(source, path), out)
        except DownloadError as error:
            failed.append(source.name)
            folder = f"{BY_HAND}/{source.name}"
            for address, place in hand_placed(source, folder).items():
                given = folder if place.startswith(f"{folder}/") else place
                print(
                    f"error: {source.name}: cannot be downloaded ({error.reason}); place {address} "
                    f"as {place}, then: python launch/import_data.py --source={source.name} "
                    f"--path={given} --out={out}",
                    file=sys.stderr,
                )
        except UserError as error:
            failed.append(source.name)
            print(f"error: {source.name}: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"--source=all: not imported: {', '.join(failed)}; the reasons are above")


def _path_of(source: Source, folder: str) -> str:
    path = f"{folder}/{source.name}"
    archives = [f"{path}{end}" for end in ARCHIVE_ENDS if pathlib.Path(f"{path}{end}").is_file()]
    return archives[0] if archives and not pathlib.Path(path).exists() else path


def _summarise(source: Source, imported: Tables) -> None:
    pinned = set(source.files.values())
    for meta, rows in imported:
        files = meta["upstream"]["files"]
        for name, found in files.items() if len(files) <= MOST_LISTED else ():
            kind = "the pinned file" if found in pinned else "not the pinned file: a part, or other"
            print(f"read {name}, SHA-256 {found} ({kind})")
        if len(files) > MOST_LISTED:
            whole = sum(found in pinned for found in files.values())
            print(f"read {len(files)} files: {whole} as pinned, the others a part, or other")
        levels = collections.Counter(e["fidelity"]["level"] for e in meta["experiments"].values())
        shown = ", ".join(f"{levels[level]} {level}" for level in tables.LEVELS if levels[level])
        status = collections.Counter(row["status"] for row in rows)
        print(
            f"{meta['source']}/{meta['task']}: {len(meta['experiments'])} experiments ({shown}), "
            f"{len(rows)} rows: "
            + ", ".join(f"{status[name]} {name}" for name in tables.STATUSES if status[name])
        )
        if meta.get("left_out"):
            print(f"left out: {', '.join(meta['left_out'])}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; accepted are --source, --path, --out")
    if FLAGS.source is None and FLAGS.path is None and FLAGS.out is None:
        print(__doc__ + f"\nSources: {', '.join(SOURCES)}.")
        raise UserError("--source and --out are missing")
    if FLAGS.source != "all" and FLAGS.source not in SOURCES:
        raise UserError(f"--source is {FLAGS.source!r}; accepted are {', '.join(SOURCES)}, all")
    if not FLAGS.out:
        raise UserError("--out is missing; accepted is the folder of outcome tables to write into")
    if FLAGS.source == "all":
        import_all(FLAGS.path, FLAGS.out)
    else:
        import_source(SOURCES[FLAGS.source], FLAGS.path, FLAGS.out)


if __name__ == "__main__":
    command_line.run(main)
