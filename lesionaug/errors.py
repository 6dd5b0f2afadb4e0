"""The errors a user can meet: the place, the rule that was broken and the fix; each has its exit code."""

from __future__ import annotations


class LesionaugError(Exception):
    """An error with a place (file or argument), the rule that was broken, and the fix.

    Args:
        where: The file (relative to the source folder), row or argument at fault.
        rule: What must hold and what came instead, as a sentence without its full stop.
        fix: What the user can do about it, as a sentence.
    """

    exit_code = 1

    def __init__(self, where: str, rule: str, fix: str) -> None:
        super().__init__(where, rule, fix)
        self.where = where
        self.rule = rule
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}. {self.fix}"


class TaskFailed(LesionaugError):
    """A task of a run failed; what was committed before it stays (exit code 1)."""

    exit_code = 1


class ConfigError(LesionaugError, ValueError):
    """A usage or configuration error (exit code 2)."""

    exit_code = 2


class DataError(LesionaugError, ValueError):
    """A source, store or run that cannot be used as it is (exit code 3)."""

    exit_code = 3


class EnvironmentProblem(LesionaugError, RuntimeError):
    """Something the machine lacks: an extra, a codec, a device (exit code 4)."""

    exit_code = 4


class MemoryRanOut(EnvironmentProblem):
    """Memory ran out: another machine, or this one at another time, may have enough (exit code 4)."""
