"""Errors that a user can cause, and exit codes."""

# The exit code after a stop signal (EX_TEMPFAIL of sysexits.h): the same command resumes the job.
PREEMPTED_EXIT_CODE = 75


class UserError(Exception):
    """Report a mistake that its user can mend: one line that names it and says what is accepted.

    `launch/main.py` prints the line and exits with 1; nothing has been overwritten by then.
    """


def one_line(error: BaseException) -> str:
    """Say what another library says, in one line."""
    return " ".join(str(error).split())
