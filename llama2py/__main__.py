"""Entry point of ``python -m llama2py`` and of the command ``llama2py``."""

import os
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> int:
    """Run the command line. Ctrl-C at any moment ends it without a traceback."""
    try:
        return _run()
    except KeyboardInterrupt:
        return INTERRUPTED


def _run() -> int:
    import signal  # inside `main`'s try, like everything that takes a while

    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        # An exception could get lost inside the imports, and there is nothing to clean up yet.
        signal.signal(signal.SIGINT, lambda signum, frame: os._exit(INTERRUPTED))
    from .cli import execute, parse_args

    args = parse_args(sys.argv[1:])
    try:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return execute(args)
    finally:
        if is_default:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interpreter is about to exit


if __name__ == "__main__":
    sys.exit(main())
