"""Loads a corpus by name: domains of text, each split into training and validation documents.

`stdlib` is the standard library of the running interpreter. It gives six domains on every machine,
without a download. `tfds:NAME[/CONFIG]` is a text data set of tensorflow-datasets.
"""

import ast
import dis
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import pydoc_data.topics
import sysconfig
import types
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from autollm_jax.data.corpus import Corpus, digest, make_corpus
from autollm_jax.data.tfds_corpus import load_tfds
from autollm_jax.errors import UserError

DEFAULT_MAX_BYTES = 4_000_000
# Folders that are not part of the library: caches and installed packages.
_FOREIGN = {"__pycache__", "site-packages", "dist-packages"}
_TEST_FOLDERS = {"test", "tests", "idle_test"}
# Paths that are left out of `library_code`. The topics of pydoc_data are a domain of their own. The
# codecs of encodings are generated tables. The other files name the machine, so with them the
# content hash would differ between machines.
_SKIPPED = ("pydoc_data/", "encodings/", "config-", "_sysconfigdata", "sitecustomize", "usercustom")
# Most bytes of a generated domain (bytecode, character names), which could be much larger.
_GENERATED_BYTES = 1_000_000
_NAME_BLOCK = 256  # code points per document of character names
# A library with fewer bytes of tests has had its tests stripped by the distribution.
_FEW_TEST_BYTES = 1_000_000
_PACKAGES_WITH_TESTS = ("numpy", "scipy", "pyarrow")


def load_corpus(
    name: str,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    data_dir: str | os.PathLike | None = None,
) -> Corpus:
    """Load a corpus by name, the same on every call on one machine.

    Args:
      name: "stdlib", or "tfds:NAME[/CONFIG]" for a text data set of tensorflow-datasets.
      max_bytes: Most bytes kept of each domain. "stdlib" counts training and validation documents
        together; "tfds:..." counts the training split alone.
      data_dir: Folder of prepared TFDS data sets; None is the default folder of TFDS. "stdlib"
        ignores it.

    Returns:
      The corpus, with its version and the SHA-256 of its content.

    Raises:
      UserError: The name is unknown, or the data set has no text or cannot be prepared.
    """
    if name.startswith("tfds:") and name != "tfds:":
        return load_tfds(name, max_bytes=max_bytes, data_dir=data_dir)
    if name == "stdlib":
        return _load_stdlib_once(max_bytes)
    raise UserError(f"corpus {name!r} is unknown; accepted: stdlib, tfds:NAME[/CONFIG]")


@functools.lru_cache(maxsize=2)
def _load_stdlib_once(max_bytes: int) -> Corpus:
    packages = {}
    for package in _PACKAGES_WITH_TESTS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            packages[package] = Path(next(iter(spec.submodule_search_locations)))
    root = Path(sysconfig.get_path("stdlib"))
    return read_stdlib(root, packages, pydoc_data.topics.topics, max_bytes=max_bytes)


def read_stdlib(
    root: Path, packages: Mapping[str, Path], topics: Mapping[str, str], *, max_bytes: int
) -> Corpus:
    """Read a standard library as six domains.

    A hash of its path puts each module either in `library_code`, or in `docstrings` and `bytecode`.
    So no two domains share text: bytecode is compiled without docstrings.

    Args:
      root: The folder of the standard library.
      packages: Folders of installed packages by name. Their tests are used where the distribution
        has stripped the tests of the library.
      topics: The language reference, by topic.
      max_bytes: Most bytes kept of each domain.

    Returns:
      A corpus of the domains that this machine has.

    Raises:
      UserError: The folder holds no library code.
    """
    library, tests = {}, {}
    for path, file in _python_files(root).items():
        (tests if _is_test(path) else library)[path] = file
    notes = []
    if sum(file.stat().st_size for file in tests.values()) < _FEW_TEST_BYTES:
        notes.append(_borrow_tests(tests, packages))
    code = {p: f for p, f in library.items() if not p.startswith(_SKIPPED)}
    documented = {p: f for p, f in code.items() if int(digest(f"half {p}")[:2], 16) % 2}
    code = {p: f for p, f in code.items() if p not in documented}
    generated = min(max_bytes, _GENERATED_BYTES)
    domains = {
        "bytecode": _bytecode(documented, generated),
        "character_names": _cap(_character_names(), generated),
        "docstrings": _cap(_docstrings(documented), max_bytes),
        "language_reference": _cap(_without_repeats(topics), max_bytes),
        "library_code": _read_some(code, max_bytes),
        "test_code": _read_some(tests, max_bytes),
    }
    if not library:
        raise UserError(f"{root}: no Python files of a standard library here; use tfds:NAME")
    if not domains["library_code"]:
        raise UserError(f"max_bytes={max_bytes}: too small for one document; accepted: 1000000")
    return make_corpus(
        "stdlib",
        version=f"{platform.python_implementation()} {platform.python_version()}",
        description="; ".join(["the interpreter's standard library", *notes]),
        domains=domains,
    )


def _borrow_tests(tests: dict[str, Path], packages: Mapping[str, Path]) -> str:
    """Add the tests of installed packages to `tests`; return a note that names the packages."""
    borrowed = []
    for package, folder in packages.items():
        files = _python_files(folder).items()
        found = {f"{package}/{path}": file for path, file in files if _is_test(path)}
        if found:
            tests.update(found)
            borrowed.append(f"{package} {_version_of(package)}")
    return (
        "the library's own tests are stripped here, test_code holds what is left and the "
        f"tests of {', '.join(borrowed) or 'no package'}"
    )


def _python_files(root: Path) -> dict[str, Path]:
    """Return the Python files under `root` by relative path, sorted."""
    files = {}
    for folder, children, names in os.walk(root):
        children[:] = [child for child in children if child not in _FOREIGN]
        for name in names:
            file = Path(folder, name)
            if name.endswith(".py") and file.is_file():
                files[file.relative_to(root).as_posix()] = file
    return dict(sorted(files.items()))


def _is_test(path: str) -> bool:
    return not _TEST_FOLDERS.isdisjoint(path.split("/")[:-1])


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _read_some(files: Mapping[str, Path], max_bytes: int) -> dict[str, str]:
    """Read files in the order of their paths' hashes up to `max_bytes`; skip undecodable ones."""
    texts, total = {}, 0
    for path in sorted(files, key=digest):
        size = files[path].stat().st_size
        if size == 0 or total + size > max_bytes:
            continue
        try:
            texts[path] = files[path].read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        total += size
    return texts


def _cap(texts: Mapping[str, str], max_bytes: int) -> dict[str, str]:
    """Keep texts in the order of their keys' hashes up to `max_bytes`."""
    kept, total = {}, 0
    for key in sorted(texts, key=digest):
        size = len(texts[key].encode("utf-8"))
        if size and total + size <= max_bytes:
            kept[key] = texts[key]
            total += size
    return kept


def _bytecode(files: Mapping[str, Path], max_bytes: int) -> dict[str, str]:
    """Return modules' compiled code as text, one instruction a line, up to `max_bytes`."""
    texts, total = {}, 0
    for path in sorted(files, key=digest):
        try:
            source = files[path].read_bytes().decode("utf-8")
            code = compile(source, path, "exec", dont_inherit=True, optimize=2)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        text = "\n".join(_instructions(code)) + "\n"
        size = len(text.encode("utf-8", "ignore"))
        if total + size <= max_bytes:
            texts[path] = text.encode("utf-8", "ignore").decode("utf-8")
            total += size
        if total > 0.95 * max_bytes:
            break
    return texts


def _instructions(code: types.CodeType) -> Iterator[str]:
    """Yield a line for each instruction, functions after the body that defines them."""
    yield f"code {code.co_name}"
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("CACHE", "EXTENDED_ARG"):
            continue
        argument = instruction.argrepr
        if isinstance(instruction.argval, types.CodeType):  # argrepr holds a memory address
            argument = f"code {instruction.argval.co_name}"
        elif isinstance(instruction.argval, frozenset):  # its order depends on the process
            argument = f"set of {len(instruction.argval)}"
        yield f"  {instruction.opname} {argument}".rstrip()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _character_names() -> dict[str, str]:
    """Return the names of the Unicode characters, one document for each block of code points."""
    documents = {}
    for block in range(0, 0x20000, _NAME_BLOCK):
        names = [unicodedata.name(chr(point), "") for point in range(block, block + _NAME_BLOCK)]
        # An ideograph's name is only its number.
        names = [name for name in names if name and "IDEOGRAPH-" not in name]
        if names:
            documents[f"U+{block:05X}"] = "\n".join(names) + "\n"
    return documents


def _docstrings(files: Mapping[str, Path]) -> dict[str, str]:
    """Return each module's docstrings as one document."""
    documents = {}
    for path, file in files.items():
        try:
            source = file.read_bytes().decode("utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        found = [text for text in _docstrings_of(tree) if text]
        if found:
            documents[path] = "\n\n".join(found) + "\n"
    return documents


def _docstrings_of(node: ast.AST):
    """Yield the docstrings of a module, its classes and its functions, in order of appearance.

    The search visits only the bodies of definitions, so it is many times faster than `ast.walk`.
    """
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        if isinstance(first.value.value, str):
            # Drop lone surrogates (written as escapes): UTF-8 cannot encode them.
            text = first.value.value.encode("utf-8", "ignore").decode("utf-8")
            yield inspect.cleandoc(text)
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_of(child)


def _without_repeats(topics: Mapping[str, str]) -> dict[str, str]:
    """Drop topics that a longer topic contains, so that no text is in both splits."""
    kept = {}
    for topic in sorted(topics, key=lambda key: (-len(topics[key]), key)):
        # Compare without the heading: only the heading differs between the two copies.
        body = topics[topic].split("\n", 3)[-1].strip()
        if body and not any(body in text for text in kept.values()):
            kept[topic] = topics[topic]
    return kept
