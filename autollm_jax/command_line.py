"""Running a script of `launch/`: a user's mistake becomes one line and exit code 1."""

import runpy
import sys
from collections.abc import Callable

from absl import app, flags

from autollm_jax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and run `main`.

    `UserError`, and whatever is wrong with a flag or a config file, ends the script with one line.
    """
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        sys.exit(f"error: {error}")


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            # What stands for a config file that could not be read raises on any attribute.
            getattr(flags.FLAGS["config"].value, "to_dict", None)
        return rest
    except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown field
        raise UserError(_unknown_field(argv) or f"unknown field {error}") from error
    except (flags.Error, OSError, ValueError, TypeError) as error:
        raise UserError(_one_line(error)) from error


def _unknown_field(argv: list[str]) -> str | None:
    """Name the first field given on the command line that the config does not have."""
    given = dict(arg.removeprefix("--").split("=", 1) for arg in argv if "=" in arg)
    path, _, variant = given.get("config", "").partition(":")
    if not path:
        return None
    config = runpy.run_path(path)["get_config"](*([variant] if variant else []))
    for field in given:
        node, here = config, "config"
        for name in field.split(".")[1:] if field.startswith("config.") else ():
            if name not in node:
                return f"--{field}: {here} has no field {name!r}; it has {', '.join(node)}"
            node, here = node[name], f"{here}.{name}"
    return None


def _one_line(error: Exception) -> str:
    """Take the cause's own line out of a message that quotes a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else " ".join(lines)
