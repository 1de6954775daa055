"""``attn-jax`` and ``python -m attn_jax``. Until all is imported, Ctrl-C ends the process without a word."""

import signal


def main() -> None:
    """Imports the command line and runs it."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from attn_jax import cli

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
