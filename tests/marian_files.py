"""Students of Bergamot for the tests: random tensors, and Marian's files written byte by byte."""

from __future__ import annotations

import io
import struct

import numpy as np
import sentencepiece

OPTIONS = """\
dec-cell: ssru
dec-depth: 2
dim-emb: {width}
dim-vocabs:
  - {vocab}
  - {vocab}
enc-depth: 1
tied-embeddings-all: true
transformer-decoder-autoreg: rnn
transformer-dim-ffn: {hidden}
transformer-ffn-activation: relu
transformer-heads: 2
transformer-postprocess: dan
transformer-preprocess: ""
transformer-tied-layers: []
type: transformer
"""
VOCAB = 34
TEXT = ["ein alter mann mit hut", "eine junge frau am see", "zwei hunde laufen am see entlang", "der mann sieht hunde"]


def spm_model(**options):
    """A SentencePiece model as Marian trains them: ``</s>`` 0, ``<unk>`` 1, neither padding nor begin."""
    model, ids = io.BytesIO(), {"eos_id": 0, "unk_id": 1, "bos_id": -1, "pad_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, vocab_size=VOCAB, minloglevel=3, **ids | options
    )
    return model.getvalue()


def student_tensors(rng, vocab, width=8, hidden=12):
    """A student of one encoder and two decoder layers, its kernels whole numbers over a multiplier of their own."""

    def kernel(rows, columns):
        whole = rng.integers(-127, 128, (rows, columns)).astype(np.float32)
        whole[0, 0] = 127  # so that rounding to eight bits loses nothing
        return whole / np.float32(rng.uniform(80, 160))

    def row(size, mean=0.0):
        return (mean + 0.3 * rng.standard_normal((1, size))).astype(np.float32)

    def norm(name):
        return {f"{name}_ln_scale": row(width, 1.0), f"{name}_ln_bias": row(width)}

    def attention(prefix):
        kernels = {f"{prefix}_W{letter}": kernel(width, width) for letter in "qkvo"}
        return kernels | {f"{prefix}_b{letter}": row(width) for letter in "qkvo"} | norm(f"{prefix}_Wo")

    def feed_forward(prefix):
        kernels = {f"{prefix}_W1": kernel(width, hidden), f"{prefix}_W2": kernel(hidden, width)}
        return kernels | {f"{prefix}_b1": row(hidden), f"{prefix}_b2": row(width)} | norm(f"{prefix}_ffn")

    tensors = {"Wemb": kernel(vocab, width), "decoder_ff_logit_out_b": row(vocab)}
    tensors |= attention("encoder_l1_self") | feed_forward("encoder_l1_ffn")
    for layer in ("decoder_l1", "decoder_l2"):
        tensors |= attention(f"{layer}_context") | feed_forward(f"{layer}_ffn") | norm(f"{layer}_rnn_ffn")
        tensors |= {f"{layer}_rnn_W": kernel(width, width), f"{layer}_rnn_Wf": kernel(width, width)}
        tensors[f"{layer}_rnn_bf"] = row(width)
    return tensors


def options_of(tensors, **changes):
    """The options of such a student, with other lines for some names."""
    vocab, width = tensors["Wemb"].shape
    text = OPTIONS.format(vocab=vocab, width=width, hidden=tensors["encoder_l1_ffn_W1"].shape[1])
    lines = [line for line in text.splitlines() if line.partition(":")[0] not in changes]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in changes.items())]) + "\n"


def is_kernel(name):
    return name == "Wemb" or ("_W" in name and not name.endswith(("_scale", "_bias")))


def marian_bytes(tensors, options, whole=is_kernel, padding=7):
    """Marian's binary format, version 1; the tensors that are ``whole`` as intgemm8 with 127 / max as multiplier."""
    items = []
    for name, array in tensors.items():
        if whole(name):
            multiplier = np.float32(127 / np.abs(array).max())
            numbers = np.rint(array * multiplier).astype(np.int8)
            data = (numbers if name == "Wemb" else numbers.T).tobytes() + multiplier.tobytes()
            items.append((name, 0x4101, array.shape, data + bytes(-len(data) % 256)))
        else:
            items.append((name, 0x404, array.shape, array.astype("<f4").tobytes()))
    text = options.encode() + b"\0"
    items.append(("special:model.yml", 0x101, (len(text),), text))
    names = [name.encode() + b"\0" for name, *_ in items]
    headers = [(len(n), kind, len(shape), len(data)) for n, (_, kind, shape, data) in zip(names, items, strict=True)]
    shapes = [struct.pack(f"<{len(shape)}i", *shape) for _, _, shape, _ in items]
    head = struct.pack("<2Q", 1, len(items)) + b"".join(struct.pack("<4Q", *header) for header in headers)
    data = [each for *_, each in items]
    return b"".join([head, *names, *shapes, struct.pack("<Q", padding), bytes(padding), *data])


def write_student(folder, tensors, options=None, form="bin"):
    """A folder as Bergamot publishes it."""
    options = options or options_of(tensors)
    folder.mkdir(parents=True)
    (folder / "vocab.deen.spm").write_bytes(spm_model())
    if form == "bin":
        (folder / "model.deen.intgemm.alphas.bin").write_bytes(marian_bytes(tensors, options))
    else:
        text = np.frombuffer(options.encode() + b"\0", np.int8)
        np.savez(folder / "model.npz", **tensors, **{"special:model.yml": text})
    return folder
