"""Marian models as Hugging Face publishes them (``opus-mt-en-fr``): settings, parameters, vocabularies, how to search.

They are this library's post-norm Transformer, with sines before cosines. Ids change: first come the special ones of
this library, then the others in their order. There is one id more, ``<s>``: Marian's decoder starts from a token that
is padding elsewhere, and attends to it. ``<s>`` has the embedding of that token and can never be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attn_jax.convert.errors import ConversionError
from attn_jax.convert.marian_search import search_settings
from attn_jax.convert.tensors import Tensors
from attn_jax.convert.torch_file import read_torch_file
from attn_jax.functional.positions import sinusoidal_positions
from attn_jax.models.protocol import BOS_ID, IMPOSSIBLE
from attn_jax.nn.settings import check_types
from attn_jax.storage import manifest
from attn_jax.storage.files import IntegrityError, read_json
from attn_jax.storage.model_folder import DTYPES, read_tensors

FAMILY = "transformer"
ACTIVATIONS = {
    "swish": "swish",
    "silu": "swish",
    "relu": "relu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
}
"""Theirs and ours."""

SIZES = {
    "d_model": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "ffn_dim": "encoder_ffn_dim",
    "decoder_num_heads": "decoder_attention_heads",
    "decoder_ffn_dim": "decoder_ffn_dim",
    "max_src_len": "max_position_embeddings",
}
"""Ours and theirs."""

TYPES = {
    **dict.fromkeys(SIZES.values(), "int"),
    "vocab_size": "int",
    "decoder_vocab_size": "int | None",
    "activation_function": "str",
    "dropout": "float",
    "attention_dropout": "float",
    "tie_word_embeddings": "bool",
    "share_encoder_decoder_embeddings": "bool",
    "scale_embedding": "bool",
}
"""Of what is read in ``config.json``."""

SPECIAL = ("<pad>", None, "</s>", "<unk>")
"""Their tokens for our ids 0, 1, 2 and 3; the second is whatever their decoder starts from."""

SIDES = {"src": "encoder", "tgt": "decoder"}
ATTENTIONS = {"self_attn": "attention", "encoder_attn": "cross_attention"}
PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
NORMS = {
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn_layer_norm": "cross_norm",
    "final_layer_norm": "ffn_norm",
}


class Pieces(NamedTuple):
    """A vocabulary: the ``tokens`` by id, and the SentencePiece ``model`` that cuts a text into them."""

    tokens: tuple[str, ...]
    model: bytes


class MarianModel(NamedTuple):
    """What a model folder is made of.

    Attributes:
      settings: of the model in `FAMILY`.
      params: nested dict of float32 arrays.
      src, tgt: the vocabularies; the same object where they are one.
      search: options of `attn_jax.search_config.SearchConfig` that search as the folder asks for.
    """

    settings: dict[str, Any]
    params: dict[str, Any]
    src: Pieces
    tgt: Pieces
    search: dict[str, Any]


def read_marian(folder: str | Path) -> MarianModel:
    """Reads a Marian model.

    Args:
      folder: with ``config.json``, ``vocab.json`` (and ``target_vocab.json``), ``source.spm``, ``target.spm``,
        ``model.safetensors`` or ``pytorch_model.bin``, and ``generation_config.json`` if there is one.

    Raises:
      ConversionError: for a model of another kind, or one that says something this library would do otherwise.
      TorchFileError, IntegrityError: for a file that is damaged or missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConversionError(f"{folder}: missing; expected a folder with config.json, vocab.json and weights")
    if (folder / manifest.NAME).is_file():  # `attn-jax fetch` wrote it
        _verify(folder)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "marian":
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise ConversionError(f"{folder / 'config.json'}: expected model_type 'marian', found {found!r}")
    try:
        check_types(TYPES, {name: config[name] for name in TYPES if name in config})
    except ValueError as error:
        raise ConversionError(f"{folder / 'config.json'}: {error}") from None
    shared = config.get("share_encoder_decoder_embeddings", True)
    src_ids = _vocabulary(folder / "vocab.json", config.get("vocab_size"))
    tgt_ids = src_ids
    if not shared:
        tgt_ids = _vocabulary(folder / "target_vocab.json", config.get("decoder_vocab_size") or config["vocab_size"])
    start = config.get("decoder_start_token_id", config.get("pad_token_id"))
    if not isinstance(start, int) or not 0 <= start < len(tgt_ids):
        where = folder / "config.json"
        raise ConversionError(f"{where}: expected decoder_start_token_id below {len(tgt_ids)}, found {start!r}")
    orders = [_order(src_ids, start if shared else src_ids["<pad>"]), _order(tgt_ids, start)]
    tensors = _tensors(folder)
    settings = _settings(config, folder / "config.json", *map(len, orders))
    src, tgt = (
        Pieces(_tokens(ids, order), _read(folder / name))
        for ids, order, name in zip((src_ids, tgt_ids), orders, ("source.spm", "target.spm"), strict=True)
    )
    where, generation = folder / "config.json", {"forced_eos_token_id": tgt_ids["</s>"]} | config
    if (folder / "generation_config.json").is_file():
        where = folder / "generation_config.json"
        generation = read_json(where)
        if not isinstance(generation, dict):
            raise ConversionError(f"{where}: expected an object, found {type(generation).__name__}; fetch it again")
    return MarianModel(
        settings,
        marian_params(tensors, settings, *orders, where=str(folder)),
        src,
        src if src == tgt else tgt,
        search_settings(generation, eos=tgt_ids["</s>"], pad=tgt_ids["<pad>"], start=start, where=str(where)),
    )


def _verify(folder: Path) -> None:
    """What was fetched is as it came."""
    try:
        manifest.verify(folder)
    except IntegrityError as error:
        remedy = f"fetch it again, or remove {manifest.NAME} if you changed the file yourself"
        raise IntegrityError(f"{error}; {remedy}") from None


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ConversionError(f"{path}: missing; the model needs it to cut text into pieces, fetch it too")
    return path.read_bytes()


def _vocabulary(path: Path, size: Any) -> dict[str, int]:
    """Ids by token: each from 0 to the size of the vocabulary once."""
    ids = read_json(path)
    numbers = set(ids.values()) if isinstance(ids, dict) and all(type(i) is int for i in ids.values()) else None
    if numbers is None or numbers != set(range(len(ids))):
        raise ConversionError(f"{path}: expected an object with the ids 0, 1, 2 ... of its tokens, each once")
    if len(ids) != size:
        raise ConversionError(f"{path}: expected {size} tokens as config.json says, found {len(ids)}")
    if missing := [token for token in SPECIAL if token and token not in ids]:
        raise ConversionError(f"{path}: lacks {', '.join(missing)}")
    return ids


def _order(ids: Mapping[str, int], start: int) -> np.ndarray:
    """Their id of each of ours."""
    first = [ids[token] if token else start for token in SPECIAL]
    special = {ids[token] for token in SPECIAL if token}
    return np.array([*first, *(number for number in range(len(ids)) if number not in special)])


def _tokens(ids: Mapping[str, int], order: np.ndarray) -> tuple[str, ...]:
    token_of = {number: token for token, number in ids.items()}
    tokens = [token_of[number] for number in order.tolist()]
    tokens[BOS_ID] = "<s>"
    return tuple(tokens)


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """The weights as float32, from whichever file there is."""
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.is_file():
        tensors = read_tensors(safe, DTYPES | {"F16": np.dtype(np.float16), "F64": np.dtype(np.float64)})
    elif pickled.is_file():
        tensors = read_torch_file(pickled)
    else:
        raise ConversionError(f"{folder}: has neither {safe.name} nor {pickled.name}; fetch the weights too")
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _settings(config: Mapping[str, Any], where: Path, src_size: int, tgt_size: int) -> dict[str, Any]:
    """Settings of `attn_jax.models.transformer.TransformerConfig`."""
    if missing := sorted({*SIZES.values(), "activation_function"} - set(config)):
        raise ConversionError(f"{where}: lacks {', '.join(missing)}; fetch the file again")
    if small := [name for name in SIZES.values() if config[name] < 1]:
        raise ConversionError(f"{where}: {small[0]} must be at least 1, found {config[small[0]]}")
    if config["activation_function"] not in ACTIVATIONS:
        found = config["activation_function"]
        raise ConversionError(f"{where}: expected activation_function of {', '.join(ACTIVATIONS)}, found {found!r}")
    return {
        **{ours: config[name] for ours, name in SIZES.items()},
        "src_vocab_size": src_size,
        "tgt_vocab_size": tgt_size,
        "activation": ACTIVATIONS[config["activation_function"]],
        "norm_first": False,
        "norm_epsilon": 1e-5,
        "dropout": float(config.get("dropout", 0.1)),
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "share_embeddings": config.get("share_encoder_decoder_embeddings", True),
        "scale_embeddings": config.get("scale_embedding", False),
        "positions": "halves",
    }


def marian_params(
    tensors: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    src_order: np.ndarray,
    tgt_order: np.ndarray,
    *,
    where: str = "weights",
) -> dict[str, Any]:
    """Parameters of `attn_jax.models.transformer.Transformer` from Marian's.

    Args:
      tensors: theirs by name, float32.
      settings: of the model.
      src_order: their id of each of ours, in the source.
      tgt_order: the same in the target.
      where: what an error names.

    Raises:
      ConversionError: for tensors that are missing, left over or of another shape, copies of one tensor that differ,
        and positions that are not the usual sinusoids.
    """
    given = Tensors(tensors, where)
    take = given.take

    def linear(prefix: str, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        kernel, bias = take(f"{prefix}.weight", outputs, inputs).T, take(f"{prefix}.bias", outputs)
        return {f"{name}_kernel": kernel, f"{name}_bias": bias}

    width = settings["d_model"]

    def layer(prefix: str, hidden: int) -> dict[str, Any]:
        sides = 1 + prefix.startswith("model.decoder")  # the decoder attends twice
        attentions, norms = list(ATTENTIONS.items())[:sides], dict(NORMS)
        if sides == 1:
            del norms["encoder_attn_layer_norm"]
        params: dict[str, Any] = {
            ours: {
                name: array
                for theirs_projection, projection in PROJECTIONS.items()
                for name, array in linear(f"{prefix}.{theirs}.{theirs_projection}", projection, width, width).items()
            }
            for theirs, ours in attentions
        }
        for theirs, ours in norms.items():
            scale, bias = (take(f"{prefix}.{theirs}.{kind}", width) for kind in ("weight", "bias"))
            params[ours] = {"scale": scale, "bias": bias}
        params["ffn"] = linear(f"{prefix}.fc1", "in", width, hidden) | linear(f"{prefix}.fc2", "out", hidden, width)
        return params

    encoder = {
        f"block_{i}": layer(f"model.encoder.layers.{i}", settings["ffn_dim"]) for i in range(settings["encoder_layers"])
    }
    params = {"encoder": encoder} | {
        f"decoder_{i}": layer(f"model.decoder.layers.{i}", settings["decoder_ffn_dim"])
        for i in range(settings["decoder_layers"])
    }
    src_size, tgt_size = len(src_order) - 1, len(tgt_order) - 1
    embeddings = {
        "src_embed": ["model.encoder.embed_tokens.weight"],
        "tgt_embed": ["model.decoder.embed_tokens.weight"],
    }
    if settings["tie_embeddings"]:
        embeddings["tgt_embed"].append("lm_head.weight")
    if settings["share_embeddings"]:
        embeddings = {"src_embed": ["model.shared.weight", *embeddings["src_embed"], *embeddings["tgt_embed"]]}
    for ours, names in embeddings.items():
        size, order = (src_size, src_order) if ours == "src_embed" else (tgt_size, tgt_order)
        present = [name for name in names if name in tensors] or names[:1]
        copies = [take(name, size, width) for name in present]
        _check_copies(dict(zip(present, copies, strict=True)), where)
        params[ours] = {"embedding": copies[0][order]}
    if not settings["tie_embeddings"]:
        params["output_kernel"] = take("lm_head.weight", tgt_size, width)[tgt_order].T
    if "final_logits_bias" in tensors:
        params["output_bias"] = take("final_logits_bias", 1, tgt_size)[0, tgt_order]
    else:
        params["output_bias"] = np.zeros(len(tgt_order), np.float32)
    params["output_bias"][BOS_ID] = IMPOSSIBLE
    for side in SIDES.values():
        if (name := f"model.{side}.embed_positions.weight") in tensors:
            _check_positions(name, take(name, settings["max_src_len"], width), where)
    given.check()
    return params


def _check_copies(copies: Mapping[str, np.ndarray], where: str) -> None:
    (first, array), *others = copies.items()
    for name, other in others:
        if not np.array_equal(array, other):
            rows = np.flatnonzero((array != other).any(axis=1))
            raise ConversionError(
                f"{where}: expected {name} to be a copy of {first}, found {len(rows)} rows that differ, the first "
                f"{rows[0]} by up to {np.abs(array - other).max():.3g}; say in config.json what is not shared "
                "(share_encoder_decoder_embeddings, tie_word_embeddings), or save the model again"
            )


def _check_positions(name: str, array: np.ndarray, where: str) -> None:
    off = np.abs(array - np.asarray(sinusoidal_positions(*array.shape, interleaved=False))).max()
    if off > 1e-3:
        raise ConversionError(f"{where}: expected sinusoids in {name}, found numbers {off:.3g} away; is it a Marian?")
