"""Checkpoints through Orbax: arrays of the state, and JSON metadata such as the data position."""

import shutil
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from autollm_jax.errors import UserError, one_line


class Checkpoints:
    """Saves and restores the checkpoints of one stage under `directory`.

    Orbax writes a checkpoint into a temporary folder and renames the folder once it is complete, so
    a kill leaves the earlier checkpoints intact. `restore` gives the arrays the shardings of the
    abstract state, so a job may resume on another mesh or with another number of processes. Every
    process of a job has to call every method; each process writes its own shards.
    """

    def __init__(self, directory, keep: int = 2, *, alone: bool = False):
        """Open the directory.

        Args:
          directory: the stage's folder; created where it is missing.
          keep: number of checkpoints to keep, the newest ones. At least 2, so that a damaged
            checkpoint has a predecessor.
          alone: whether only this process of the job uses the directory, for its own arrays.

        Raises:
          ValueError: `keep` is below 2.
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
        if not options.create:  # Orbax creates no folder for a subset of the processes
            self.directory.mkdir(parents=True, exist_ok=True)
        handlers = {
            "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
            "extra": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
        }
        self.manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def latest(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state, extra: dict) -> None:
        """Start to save a checkpoint; a background thread writes it.

        Args:
          step: number of finished steps.
          state: tree of arrays.
          extra: JSON values, such as the data position and the identity of the state.
        """
        items = {"state": ocp.args.StandardSave(state), "extra": ocp.args.JsonSave(extra)}
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract_state, step: int | None = None):
        """Restore a checkpoint.

        Without a `step`, a damaged checkpoint is renamed to `damaged_STEP`, a line on stderr
        reports it, and the checkpoint before it is tried.

        Args:
          abstract_state: `ShapeDtypeStruct` tree with shardings.
          step: the step to restore; None is the newest undamaged checkpoint.

        Returns:
          The state, and the `extra` it was saved with.

        Raises:
          UserError: there is no checkpoint, the checkpoint of `step` is damaged, or its tree or a
            shape differs from `abstract_state`. In a job of several processes any damaged
            checkpoint is an error.
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

    def extra(self, step: int) -> dict:
        """Return what a checkpoint was saved with, without its arrays."""
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        return self.manager.restore(step, args=args)["extra"]

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
            # Another process may find its own shards undamaged, and would not rename the folder.
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
        """Wait until all saves are on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def _name(path) -> str:
    """Return a leaf's path; attributes, keys and indices are spelled alike."""
    return "/".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path)
