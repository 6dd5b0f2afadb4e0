"""The command line: the commands by name; each lives in a file of its own and imports torch only when it runs."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lesionaug import __version__
from lesionaug.cli.console import printable
from lesionaug.errors import EnvironmentProblem, LesionaugError

if TYPE_CHECKING:
    import cyclopts

# Full or read-only disks, quotas and permissions: nothing the program can mend.
_MACHINE_SAYS_NO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_INTERRUPTED = 130  # what shells report for Ctrl-C


def build_app() -> cyclopts.App:
    """The application with all its commands."""
    try:
        import cyclopts
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "lesionaug", f"the command line needs {error.name}", 'Install it with: pip install "lesionaug[full]"'
        ) from error
    from lesionaug.cli import augment, bench, data, demo, doctor, gan, phantom, report, run, study

    app = cyclopts.App(
        name="lesionaug",
        version=__version__,
        default_parameter=cyclopts.Parameter(negative=()),  # no --empty-... or --no-... beside every option
        help="Augment lesion ROIs and carry out the experiment of Frid-Adar et al. 2018, from CT slices to a report.",
    )
    for module in (demo, phantom, data, augment, run, report, gan, study, doctor, bench):
        module.register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 ok, 1 a task failed, 2 usage or configuration, 3 data, 4 environment."""
    try:
        app = build_app()
        result = app(sys.argv[1:] if arguments is None else list(arguments), result_action="return_value")
    except LesionaugError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lesionaug"):
            raise
        _fail(
            f'{error.name}: not installed. Install it with: pip install "lesionaug[full]"', EnvironmentProblem.exit_code
        )
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept", _INTERRUPTED)
    except BrokenPipeError:  # e.g. `lesionaug status RUN | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in _MACHINE_SAYS_NO:
            raise
        _fail(
            f"{error.filename or 'writing'}: {error.strerror}; what was finished is kept", EnvironmentProblem.exit_code
        )
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, exit_code: int) -> None:
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(exit_code)
