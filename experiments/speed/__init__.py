"""The speed scoreboard: us and our peers at the same work, in turn, in one process. See ``__main__``."""
