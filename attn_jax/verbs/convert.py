"""``fetch`` and ``convert``: models that others trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download a Marian model from the Hugging Face hub; the same command goes on with an interrupted download.

    Every file is compared with the size and hash that the hub states for the model's commit.
    """

    name: tyro.conf.Positional[str]
    """Such as opus-mt-en-fr, or owner/name."""
    out: Path | None = None
    """Where the files go; without it a folder of the model's name, here."""
    revision: str = "main"
    """A commit, a tag or a branch."""
    hub: str = "https://huggingface.co"
    """The server."""

    def run(self) -> None:
        """Downloads the files and says what comes next."""
        from attn_jax.convert.fetch import fetch_marian

        out = self.out or Path(self.name.rsplit("/", 1)[-1])
        folder = fetch_marian(self.name, out, revision=self.revision, hub=self.hub.rstrip("/"), on_file=print)
        print(f"now: attn-jax convert marian {folder} MODEL")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a model folder of a model that was trained elsewhere."""

    form: tyro.conf.Positional[Literal["marian", "bergamot"]]
    """marian: a Marian model as Hugging Face publishes it, such as opus-mt-en-fr. bergamot: a small model of Bergamot
    or Firefox Translations in Marian's own files, model*.bin or model*.npz, and vocab*.spm."""
    source: tyro.conf.Positional[Path]
    """Its folder; attn-jax fetch makes one of a Marian model."""
    out: tyro.conf.Positional[Path]
    """Where the model folder goes."""
    punctuation: str = ""
    """A language such as en: normalise the punctuation of what is translated as Moses does (needs sacremoses)."""
    overwrite: bool = False
    """Replace a model folder that is there."""

    def run(self) -> None:
        """Writes the model folder."""
        from attn_jax.hub import Translator
        from attn_jax.pretrained import load_marian, load_student

        if self.form == "marian":
            parts, origin = load_marian(self.source, punctuation=self.punctuation), "a Marian model of Hugging Face"
        elif self.punctuation:
            raise ValueError("--punctuation is for convert marian; leave it off")
        else:
            parts, origin = load_student(self.source), "a small model of Bergamot; its eight bits became float32"
        translator = Translator(*parts)
        card = (
            f"# A translation model, converted\n\nFrom {self.source.resolve().name}, {origin}.\n"
            "The licence of its makers holds for it here too.\n"
        )
        print(translator.save(self.out, card=card, overwrite=self.overwrite))
