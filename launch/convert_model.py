"""Write published weights, or a policy trained from them, as a safetensors folder.

    python launch/convert_model.py --source=FILE.gguf --out=DIR
    python launch/convert_model.py --source=DIR --out=DIR [--dtype=bfloat16]
    python launch/convert_model.py --workdir=WORKDIR --out=DIR [--dtype=bfloat16]

The source is a Hugging Face safetensors folder or a GGUF file of the Llama family or of Qwen3. Its
fields and tensors are checked against the architecture. The output folder, with vocabulary and chat
template, loads in this project and in transformers. From a work directory the parameters of the
last training stage are written, with LoRA's factors merged into their matrices.
"""

import os
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict

from autollm_jax import command_line
from autollm_jax.errors import UserError
from autollm_jax.files import read_json
from autollm_jax.job.job import Job, needed, of_one_process
from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published import pretrained
from autollm_jax.sharding.mesh import MeshShape, make_mesh

SOURCE = command_line.define_path(
    "source", None, "Safetensors folder, GGUF file, or installed package with one."
)
WORKDIR = command_line.define_path(
    "workdir", None, "Work directory of a job that trained a policy."
)
OUT = command_line.define_path("out", None, "Output folder; it must not be the source.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    list(pretrained.STORED),
    "Type of the stored numbers. The default loses nothing: the source's own type, and float32 "
    "for a quantised source, for a source of several types, and for a trained policy (training "
    "changes weights by less than bfloat16 resolves). bfloat16 files have half the size.",
)


def trained(workdir: Path) -> tuple[Path, TransformerConfig, dict]:
    """Return a trained policy.

    Args:
      workdir: work directory of a job.

    Returns:
      The path of the published weights that training began from, the policy's shape, and its
      parameters after the last training stage.

    Raises:
      UserError: there is no job, it did not begin from published weights, or is not finished.
    """
    config = ConfigDict(read_json(needed(workdir / "config.json", "all")))
    if not config.policy.weights:
        raise UserError(
            f"{workdir}: its policy has this project's own shape and vocabulary; only one that "
            "began from config.policy.weights can be written"
        )
    # The job's processes and mesh do not matter here: use this machine's devices.
    config = of_one_process(config)
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
    job = Job.start(config, str(workdir))
    params = job.parameters("grpo" if config.grpo.steps else "distill")
    return job.weights, *lora.merge(job.model, params)


def main(argv):
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags look like --source=DIR")
    if (SOURCE.value is None) == (WORKDIR.value is None):
        raise UserError("give either --source or --workdir, not both")
    if OUT.value is None:
        raise UserError("--out is missing; give the output folder")
    out = Path(os.path.expanduser(OUT.value))
    if WORKDIR.value is None:
        source = pretrained.find(SOURCE.value)
        _not_over(source, out)
        config, params = pretrained.load(source, make_mesh(MeshShape()))
    else:
        source, config, params = trained(Path(os.path.expanduser(WORKDIR.value)))
        _not_over(source, out)
    pretrained.load_tokenizer(source)  # its errors come before anything is written
    dtype = DTYPE.value or ("float32" if WORKDIR.value else pretrained.lossless(source))
    pretrained.export(config, params, out, source, dtype)
    pretrained.export_tokenizer(source, out)
    count = transformer.parameter_count(config)
    print(
        f"wrote {out}: {count:,} parameters in {dtype}, {config.layers} layers of width "
        f"{config.width}"
    )


def _not_over(source: Path, out: Path) -> None:
    if out.resolve() == source.resolve():
        raise UserError("--out is the source; give another folder")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    command_line.run(main)
