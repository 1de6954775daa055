"""Experiments: what the teaching notebooks claim, measured."""
