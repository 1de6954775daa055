"""Linen modules over the ground floor: attention, recurrent layers, decoders, Transformer blocks."""
