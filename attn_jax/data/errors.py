"""What can be wrong with a user's text, as types. Each message is one line: expected, found, where, remedy."""


class DataError(ValueError):
    """Something about the data that the user can put right. The command line prints the message and exits with 2."""


class MissingFileError(DataError, FileNotFoundError):
    """A file that is not there, or that cannot be opened."""


class EmptyFileError(DataError):
    """A file without a line, or two files of which no pair of lines can be used."""


class EncodingError(DataError):
    """Bytes that are not UTF-8, or a gzip stream that is cut or damaged."""


class LineCountError(DataError):
    """Two parallel files with different numbers of lines."""


class ColumnError(DataError):
    """A line of a .tsv file with another number of columns than it should have."""


class VocabularyError(DataError):
    """A vocabulary that cannot be built or read, or an id outside it."""


class BatchingError(DataError):
    """Sequences that cannot be batched as asked."""
