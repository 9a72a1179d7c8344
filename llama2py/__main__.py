"""Entry point of ``python -m llama2py`` and of the command ``llama2py``."""

import sys

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports a program that SIGINT ended


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
        # While modules are imported, Ctrl-C ends the process. An exception could get lost in an
        # import, and there is nothing to clean up yet.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
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
