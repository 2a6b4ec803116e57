"""Write a model as a safetensors directory: published weights, or a policy trained from them.

    python launch/convert_model.py --source=FILE.gguf --out=DIR
    python launch/convert_model.py --source=DIR --out=DIR [--dtype=bfloat16]
    python launch/convert_model.py --workdir=WORKDIR --out=DIR [--dtype=bfloat16]

Reads a Hugging Face safetensors directory or a GGUF file of the Llama family or of Qwen3, checks
every tensor against the architecture, and writes a directory, vocabulary and chat template with it,
that both this project and transformers load. Of a work directory it writes what the last training
stage made, LoRA's factors merged into their matrices.
"""

from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict

from autollm_jax import command_line
from autollm_jax.errors import UserError
from autollm_jax.files import read_json
from autollm_jax.job.job import Job, needed, of_one_process
from autollm_jax.models import lora, pretrained, transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh

SOURCE = command_line.define_path("source", None, "Safetensors directory, or GGUF file.")
WORKDIR = command_line.define_path("workdir", None, "Work directory of a trained policy.")
OUT = command_line.define_path("out", None, "Folder to write into; not the source.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    list(pretrained.STORED),
    "What is stored. By default nothing is lost: it is the source's own type, and float32 of a "
    "quantised source, of one of several types, and of a trained policy, since optimizers change "
    "it by less than bfloat16 resolves; bfloat16 takes half the room.",
)


def trained(workdir: Path) -> tuple[Path, TransformerConfig, dict]:
    """Return what a job's policy began from, its shape and its parameters after the last stage.

    Raises:
      UserError: there is no job, it did not begin from published weights, or it is not finished.
    """
    config = ConfigDict(read_json(needed(workdir / "config.json", "all")))
    if not config.policy.weights:
        raise UserError(
            f"{workdir}: its policy has a shape and a vocabulary of our own; only one that began "
            "from config.policy.weights can be written"
        )
    # Not the processes and the mesh that it was trained on: whatever devices are here.
    config = of_one_process(config)
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
    job = Job.start(config, str(workdir))
    params = job.parameters("grpo" if config.grpo.steps else "distill")
    return job.weights, *lora.merge(job.model, params)


def main(argv):
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags look like --source=DIR")
    if (SOURCE.value is None) == (WORKDIR.value is None):
        raise UserError("give either --source or --workdir: what to write")
    if OUT.value is None:
        raise UserError("--out is missing")
    out = Path(OUT.value)
    if WORKDIR.value is None:
        source = Path(SOURCE.value)
        _not_over(source, out)
        config, params = pretrained.load(source, make_mesh(MeshShape()))
    else:
        source, config, params = trained(Path(WORKDIR.value))
        _not_over(source, out)
    pretrained.load_tokenizer(source)  # what is wrong with it is said before anything is written
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
