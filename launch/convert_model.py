"""Read published weights and write them as a safetensors directory.

    python launch/convert_model.py --source=FILE.gguf --out=DIR
    python launch/convert_model.py --source=DIR --out=DIR [--dtype=float32]

Reads a Hugging Face safetensors directory or a GGUF file of the Llama family or of Qwen3, checks
every tensor against the architecture, and writes a directory, vocabulary and chat template with it,
that both this project and transformers load.
"""

from pathlib import Path

from absl import flags, logging

from autollm_jax import command_line
from autollm_jax.errors import UserError
from autollm_jax.models import pretrained, transformer
from autollm_jax.sharding.mesh import MeshShape, make_mesh

SOURCE = flags.DEFINE_string("source", None, "Safetensors directory, or GGUF file.")
OUT = flags.DEFINE_string("out", None, "Folder to write into; not the source.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", list(pretrained.STORED), "What is stored.")


def main(argv):
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags look like --source=DIR")
    for name, value in (("source", SOURCE.value), ("out", OUT.value)):
        if value is None:
            raise UserError(f"--{name} is missing")
    source, out = Path(SOURCE.value), Path(OUT.value)
    if out.resolve() == source.resolve():
        raise UserError("--out is the source; give another folder")
    config, params = pretrained.load(source, make_mesh(MeshShape()))
    tokenizer = pretrained.load_tokenizer(source)
    pretrained.export(config, params, out, source, DTYPE.value)
    tokenizer.save(out)
    count = transformer.parameter_count(config)
    print(f"wrote {out}: {count:,} parameters, {config.layers} layers of width {config.width}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    command_line.run(main)
