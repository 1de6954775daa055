"""Weights of other libraries as parameters of this one."""
