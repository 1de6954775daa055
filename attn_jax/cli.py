"""The command line: ``attn-jax VERB``, with the verbs of `attn_jax.verbs`.

`main` turns what a user can put right into one line and exit code 2.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import tyro

from attn_jax.training.interruption import Interrupted, interrupt_again, interrupt_deferred
from attn_jax.verbs.align import Align
from attn_jax.verbs.attend import Attend, Serve
from attn_jax.verbs.convert import Convert, Fetch
from attn_jax.verbs.demo import Demo, Doctor
from attn_jax.verbs.train import Train
from attn_jax.verbs.translate import Evaluate, Score, Translate

OUT_OF_MEMORY = "out of memory; take smaller batches (--batch-tokens), a narrower --beam, or a smaller model"
VERBS = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "translate": Translate,
    "score": Score,
    "attend": Attend,
    "align": Align,
    "serve": Serve,
    "fetch": Fetch,
    "convert": Convert,
    "doctor": Doctor,
}


def import_all() -> None:
    """Imports JAX and what a run needs, before anything else does; Ctrl-C waits for it. In the main thread only.

    All of it stays, so nothing looks through it for garbage, neither now nor later: that was a tenth of a start.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with interrupt_deferred():
            import_module("attn_jax.run")
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


def use_compilation_cache() -> None:
    """Keeps compiled functions in the user's cache folder, so that the next start is quick.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, and an empty one turns it off.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "attn_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def main(args: Sequence[str] | None = None) -> None:
    """The entry point of ``attn-jax``.

    Args:
      args: the command line without the program's name; None: that of the process.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"attn-jax: warning: {message}", file=sys.stderr)
    if args is None:
        sys.unraisablehook = interrupt_again
    try:
        description = "Sequence-to-sequence learning with attention: train, translate, score, see the attention."
        if list(sys.argv[1:] if args is None else args) == ["--version"]:
            print(f"attn-jax {import_module(__package__).__version__}")
            return
        verb = tyro.extras.subcommand_cli_from_dict(VERBS, args=args, prog="attn-jax", description=description)
        if args is None:
            import_all()
        use_compilation_cache()
        verb.run()
    except KeyboardInterrupt:
        _stop(130, "interrupted", alone=args is None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        _stop(2, f"error: {str(error) or OUT_OF_MEMORY}")
    except Interrupted as error:
        _stop(130, f"{error}; go on with the same command and --resume (in place of --overwrite)", alone=args is None)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            _stop(2, f"error: {OUT_OF_MEMORY}")
        raise


def _stop(code: int, message: str, alone: bool = False) -> None:
    """Ends the program; ``alone``: and the process, at once.

    A further Ctrl-C would only leave a traceback, and threads that still compile bring down an interpreter that ends.
    """
    if alone:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"attn-jax: {' '.join(message.split())}", file=sys.stderr, flush=True)
    if alone:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
