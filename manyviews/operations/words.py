"""What messages call the inputs of a collection."""

from __future__ import annotations

from dataclasses import dataclass

from producers.sources.collection import MM_IMDB, CollectionConfig


@dataclass(frozen=True, slots=True)
class Words:
    """The nouns of a collection's inputs.

    Attributes:
        image: the noun of an image.
        images: its plural.
        text: the noun of the texts of a sample.
        texts: its plural.
        file: the noun of an input.
    """

    image: str = "image"
    images: str = "images"
    text: str = "text"
    texts: str = "texts"
    file: str = "input"


PAPER = Words("poster", "posters", "synopsis", "synopses", "file")


def words_of(collection: CollectionConfig) -> Words:
    """Posters and synopses for MM-IMDb, images and texts for all others."""
    return PAPER if collection.kind == MM_IMDB else Words()
