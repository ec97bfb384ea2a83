"""Call functions in a process of their own, which gives back their memory: importing torch alone takes 500 MB."""

import base64
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from subprocess import PIPE, CalledProcessError, Popen
from typing import Any

from harness.common.errors import InputError


def start_call(module: str, function: str, *arguments: Any) -> Callable[[], Any]:
    """Call a module's function in a new process, and return a function that waits for its result.

    If this process has imported torch already, the returned function makes the call here. It raises InputError and
    OSError as the function does, and CalledProcessError if the process fails otherwise.
    """
    if "torch" in sys.modules:
        return partial(_call, module, function, *arguments)
    request = base64.b64encode(pickle.dumps((module, function, *arguments))).decode()
    return partial(_result_of, Popen([sys.executable, "-m", __name__, request], stdout=PIPE))


def _call(module: str, function: str, *arguments: Any) -> Any:
    return getattr(import_module(module), function)(*arguments)


def _result_of(process: "Popen[bytes]") -> Any:
    output, _ = process.communicate()
    if process.returncode:
        raise CalledProcessError(process.returncode, process.args[:3])  # type: ignore[index]
    result, error = pickle.loads(output)
    if error is not None:
        raise error
    return result


def _serve(request: str) -> None:
    """Make the call that a caller asks for; write its result and its error to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process, too; the caller reports it
    result: Any = None
    error: Exception | None = None
    try:
        result = _call(*pickle.loads(base64.b64decode(request)))
    except InputError as wrong:
        error = InputError(str(wrong))  # its subclasses cannot be pickled
    except OSError as failed:
        error = failed
    with suppress(BrokenPipeError), sys.stdout.buffer as answer:  # the caller may have been stopped
        pickle.dump((result, error), answer)


if __name__ == "__main__":
    _serve(sys.argv[1])
