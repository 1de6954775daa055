"""The verbs of the command line, a family a file: each a frozen dataclass of its options with a ``run``."""
