"""What every reader of another library's model raises."""


class ConversionError(ValueError):
    """A folder that cannot be converted; one line: expected, found, where, remedy."""
