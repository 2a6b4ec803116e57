"""Checkpoints: state, consumed data position and JSON metadata, through Orbax."""

import shutil
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from autollm_jax.errors import UserError, one_line


class Checkpoints:
    """Save and restore one stage's checkpoints under `directory`.

    Orbax writes each into a temporary folder and renames it when it is whole, so a kill leaves
    the previous ones untouched. Restoring takes the layout of the abstract state it is given, so
    another mesh may read what one mesh wrote, in as many processes as it likes: each of them calls
    every method, and writes its own shards.
    """

    def __init__(self, directory, keep: int = 2, *, alone: bool = False):
        """Open the directory.

        Args:
          directory: of the stage; made where it is missing.
          keep: how many of the newest stay, 2 or more, so that a damaged one has a predecessor.
          alone: only this one of several processes uses it, for arrays of its own.
        """
        if keep < 2:
            raise ValueError(f"keep is {keep}; accepted is 2 or more")
        self._shared = jax.process_count() > 1 and not alone
        self.directory = Path(directory).absolute()
        processes = ocp.options.MultiprocessingOptions()
        if alone and jax.process_count() > 1:
            me = jax.process_index()
            processes = ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone_{me}"
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not alone or jax.process_count() == 1,
            multiprocessing_options=processes,
        )
        if not options.create:  # Orbax makes no folders for a part of the processes
            self.directory.mkdir(parents=True, exist_ok=True)
        handlers = {
            "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
            "extra": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
        }
        self.manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def latest(self) -> int | None:
        """Return the newest step that was saved whole, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state, extra: dict) -> None:
        """Start saving; the write goes on in the background.

        Args:
          step: number of updates done.
          state: tree of arrays.
          extra: JSON values: the consumed data position, what the state is of.
        """
        items = {"state": ocp.args.StandardSave(state), "extra": ocp.args.JsonSave(extra)}
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract_state, step: int | None = None):
        """Restore a checkpoint; where the newest is damaged, the newest that is whole.

        A damaged one is renamed to `damaged_STEP`, and a line on stderr says so.

        Args:
          abstract_state: `ShapeDtypeStruct` tree with shardings.
          step: which one has to be restored; None is the newest whole one.

        Returns:
          The state and the `extra` it was saved with.

        Raises:
          UserError: there is none, that of `step` is damaged, or its tree or a shape differs from
            `abstract_state`. In a job of several processes a damaged newest one is an error too.
        """
        steps = sorted(self.manager.all_steps(), reverse=True) if step is None else [step]
        if not steps or steps[0] not in self.manager.all_steps():
            raise UserError(f"{self.directory}: no checkpoint here")
        for number, tried in enumerate(steps):
            try:
                return self._restore(abstract_state, tried)
            except PermissionError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                rest = steps[number + 1 :]
                self._set_aside(tried, error, rest)
                if step is not None or not rest:
                    raise UserError(
                        f"{self.directory / str(tried)}: damaged, and renamed to damaged_{tried}; "
                        f"run --stage={self.directory.name} again, which goes on from the newest "
                        "whole checkpoint"
                    ) from error
        raise AssertionError("a checkpoint was restored, or the last one raised")

    def _restore(self, abstract_state, step: int):
        saved = self.manager.item_metadata(step)["state"]
        if saved is None:
            raise ValueError("its metadata cannot be read")
        self._check(jax.tree_util.tree_leaves_with_path(abstract_state), saved, step)
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state), extra=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["extra"]

    def _set_aside(self, step: int, error: Exception, older: list[int]) -> None:
        """Rename a damaged checkpoint, so that its step can be saved again."""
        path = self.directory / str(step)
        if self._shared:
            # Processes would have to agree: one may find its own part whole.
            raise UserError(
                f"{path}: damaged ({one_line(error)[:200]}); move it away, and the same command "
                "goes on from the checkpoint before it"
            ) from error
        target = self.directory / f"damaged_{step}"
        if target.exists():
            shutil.rmtree(target)
        path.rename(target)
        self.manager.reload()
        on = f"going on from step {older[0]}" if older else "no older one"
        print(
            f"warning: {path}: damaged ({one_line(error)[:200]}), renamed to {target.name}; {on}",
            file=sys.stderr,
        )

    def _check(self, expected, saved, step) -> None:
        found = {
            _name(path): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(saved)
            if hasattr(leaf, "shape")
        }
        for path, leaf in expected:
            name = _name(path)
            if found.get(name) != tuple(leaf.shape):
                raise UserError(
                    f"{self.directory}/{step}: {name} is {found.get(name, 'missing')} in the "
                    f"checkpoint but {tuple(leaf.shape)} in this config; use the config it was "
                    "written with, or another --workdir"
                )
        expected_names = {_name(path) for path, _ in expected}
        for name in found:
            if name not in expected_names:
                raise UserError(
                    f"{self.directory}/{step}: the checkpoint's {name} has no place in this "
                    "config; use the config it was written with, or another --workdir"
                )

    def wait(self) -> None:
        """Block until what was saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def _name(path) -> str:
    """A leaf's path with the same spelling for attributes, keys and indices."""
    return "/".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path)
