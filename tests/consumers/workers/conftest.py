"""The fixtures of builds of a text feature, whose producers can be stopped."""

from tests.consumers.test_build import (  # noqa: F401  fixtures
    configure,
    golden_text,
    short_texts,
    some_data,
)
