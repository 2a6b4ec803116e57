"""Export the trained agent of a work directory: three files, for `launch/advise.py --agent=DIR`.

python launch/export_agent.py --workdir=WORKDIR --out=DIR
"""

from collections.abc import Sequence
from pathlib import Path

from autollm_jax import command_line
from autollm_jax.advise import exporting
from autollm_jax.agent import portable
from autollm_jax.errors import UserError

WORKDIR = command_line.define_path("workdir", None, "Work directory of a trained agent.")
OUT = command_line.define_path("out", None, "Folder to write the agent into.")


def main(argv: Sequence[str]) -> None:
    del argv
    if not WORKDIR.value or not OUT.value:
        raise UserError("--workdir=WORKDIR and --out=DIR are needed")
    portable.save(Path(OUT.value), exporting.of_workdir(Path(WORKDIR.value)))
    size = sum(file.stat().st_size for file in Path(OUT.value).iterdir())
    print(f"wrote {OUT.value}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    command_line.run(main)
