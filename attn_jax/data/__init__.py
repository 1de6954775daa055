"""Text, vocabularies, batches, synthetic tasks and the bundled grammar."""
