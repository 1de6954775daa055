"""The Transformer of `experiments.speed.decode` in CTranslate2, with random weights of the same shapes."""

from __future__ import annotations

import tempfile

import ctranslate2
import numpy as np
from ctranslate2.specs import TransformerSpec

from attn_jax import TransformerConfig
from attn_jax.functional.positions import sinusoidal_positions
from experiments.speed.measure import Work, cores
from experiments.speed.work import Data


def searching(config: TransformerConfig, data: Data, *, beam: int, steps: int, compute_type: str = "float32") -> Work:
    """Encodes a batch and searches ``steps`` tokens for every sentence."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, config.src_vocab_size))]
    with tempfile.TemporaryDirectory() as folder:
        model = build(config, words)
        model.validate()
        model.optimize()
        model.save(folder)
        threads = {"inter_threads": 1, "intra_threads": cores()}
        translator = ctranslate2.Translator(folder, compute_type=compute_type, **threads)
    sources = [[words[word] for word in row[:length]] for row, length in zip(data.src, data.src_lengths, strict=True)]
    options = {"max_decoding_length": steps, "min_decoding_length": steps, "max_batch_size": 0}
    return Work(lambda: translator.translate_batch(sources, beam_size=beam, **options))


def build(config: TransformerConfig, words: list[str]) -> TransformerSpec:
    """A model description with random matrices, small enough that no sum overflows."""
    layers, width, hidden = (config.encoder_layers, config.decoder_layers), config.d_model, config.ffn_dim
    model = TransformerSpec.from_config(layers, config.num_heads, pre_norm=True)
    rng = np.random.default_rng(0)

    def linear(part, outputs: int, inputs: int) -> None:
        part.weight = rng.standard_normal((outputs, inputs), np.float32) * inputs**-0.5
        part.bias = np.zeros(outputs, np.float32)

    def norm(part) -> None:
        part.gamma, part.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    for side in (model.encoder, model.decoder):
        embeddings = side.embeddings[0] if side is model.encoder else side.embeddings
        embeddings.weight = rng.standard_normal((len(words), width), np.float32) * width**-0.5
        side.position_encodings.encodings = np.asarray(sinusoidal_positions(512, width), np.float32)
        norm(side.layer_norm)
        for layer in side.layer:
            linear(layer.self_attention.linear[0], 3 * width, width)
            linear(layer.self_attention.linear[1], width, width)
            linear(layer.ffn.linear_0, hidden, width)
            linear(layer.ffn.linear_1, width, hidden)
            norm(layer.self_attention.layer_norm)
            norm(layer.ffn.layer_norm)
            if side is model.decoder:
                for part, outputs in zip(layer.attention.linear, (width, 2 * width, width), strict=True):
                    linear(part, outputs, width)
                norm(layer.attention.layer_norm)
    linear(model.decoder.projection, len(words), width)
    model.register_source_vocabulary(words)
    model.register_target_vocabulary(words)
    return model
