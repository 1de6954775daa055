"""A Transformer encoder with a simple recurrent decoder that attends: the small students of Bergamot and Firefox."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from attn_jax.functional.positions import sinusoidal_encoding
from attn_jax.models.transformer import POSITIONS, DecoderCaches, Transformer, TransformerConfig
from attn_jax.nn.ssru import SSRUBlock

Array = jax.Array | np.ndarray


@dataclass(frozen=True, kw_only=True)
class SSRUTransformerConfig(TransformerConfig):
    """As `attn_jax.models.transformer.TransformerConfig`, with the sizes of Bergamot's tiny students by default.

    ``tiny11``: 17 million parameters, half of them embeddings of 32,000 pieces. The epsilon of the layer norms is
    that of Marian's Transformer (``layerNorm(x, scale, bias, 1e-6f)``, src/layers/generic.h).
    """

    d_model: int = 256
    num_heads: int = 8
    ffn_dim: int = 1536
    encoder_layers: int = 6
    decoder_layers: int = 2
    norm_first: bool = False
    norm_epsilon: float = 1e-6
    positions: str = "marian"


class SSRUTransformer(Transformer):
    """Multi-head self-attention in the encoder; an SSRU and multi-head attention over the source in the decoder.

    The decoder has no self-attention, so `attention_maps` has no ``decoder``.

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
        return sinusoidal_encoding(caches.position, self.config.d_model, **POSITIONS[self.config.positions])
