"""A Transformer encoder with a simple recurrent decoder that attends: the small students of Bergamot and Firefox."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from attn_jax.functional.positions import sinusoidal_encoding, sinusoidal_positions
from attn_jax.models.transformer import DecoderCaches, Transformer, TransformerConfig
from attn_jax.nn.ssru import SSRUBlock

Array = jax.Array | np.ndarray

MARIAN_ORDER = {"interleaved": False, "inclusive": True}
"""All sines before all cosines, and the lowest frequency 1 / 10000 (see `sinusoidal_positions`)."""


@dataclass(frozen=True, kw_only=True)
class SSRUTransformerConfig(TransformerConfig):
    """As `attn_jax.models.transformer.TransformerConfig`, with the sizes of Bergamot's tiny students by default.

    ``tiny11``: 17 million parameters, half of them embeddings of 32,000 pieces. Positions are always in Marian's order,
    whatever ``positions`` says.
    """

    d_model: int = 256
    num_heads: int = 8
    ffn_dim: int = 1536
    encoder_layers: int = 6
    decoder_layers: int = 2
    norm_first: bool = False
    norm_epsilon: float = 1e-9

    def encodings(self, length: int) -> Float[Array, "length d_model"]:
        """What is added to the embeddings of so many positions."""
        return sinusoidal_positions(length, self.d_model, **MARIAN_ORDER)


class SSRUTransformer(Transformer):
    """Multi-head self-attention in the encoder; an SSRU and multi-head attention over the source in the decoder.

    Positions are in Marian's order. The decoder has no self-attention, so `attention_maps` has no ``decoder``.

    Attributes:
      config: see `SSRUTransformerConfig`.

    References:
      Kim et al., From research to production and back: ludicrously fast neural machine translation (2019), ACL
      D19-5632. Bogoychev et al., Edinburgh's submissions to the 2020 machine translation efficiency task (2020), ACL
      2020.ngt-1.26: the student called tiny.
    """

    config: SSRUTransformerConfig

    block_type = SSRUBlock

    def _next_encoding(self, caches: DecoderCaches) -> Float[Array, "batch beam d_model"]:
        return sinusoidal_encoding(caches.position, self.config.d_model, **MARIAN_ORDER)
