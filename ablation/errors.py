"""Errors that name the field, the valid values and the fix, and the exit codes they end with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_JOB_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class AblationError(Exception):
    """A problem the user can mend; printed as one line, without a traceback."""

    exit_code = EXIT_USAGE

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem)
        self.problem = " ".join(problem.split())
        self.fix = " ".join(fix.split())

    def __str__(self) -> str:
        return f"{self.problem}. {self.fix}" if self.fix else self.problem


class ConfigError(AblationError):
    """A setting, stage, plan or command-line value is not usable."""


class DataError(AblationError):
    """An image, an image folder or a data file is not usable."""


class ArtifactError(AblationError):
    """A file of the store (checkpoint, latents, spec) is missing, unreadable or does not fit."""

    exit_code = EXIT_JOB_FAILED


class DivergedError(AblationError):
    """A loss became non-finite; training stopped at the last good checkpoint."""

    exit_code = EXIT_JOB_FAILED


class LostProcessError(AblationError):
    """Another process of the same training ended or cannot be reached; which, and why, is for that process to say."""

    exit_code = EXIT_JOB_FAILED


class Interrupted(Exception):
    """A stop was asked for (Ctrl-C, SIGTERM, USR2); everything needed to resume is on disk."""


def nearest(name: str, valid: Iterable[str], most: int = 3) -> str:
    """Say which valid names are closest to a wrong one, for the end of an error message."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.4)
    if close:
        return "Did you mean " + " or ".join(close) + "?"
    shown = ", ".join(names[:20])
    return f"Valid names: {shown}{', ...' if len(names) > 20 else ''}."
