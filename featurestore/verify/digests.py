"""Compares files with the SHA-256 that was recorded when they were written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from featurestore.storage.digests import file_sha256
from featurestore.verify.findings import Finding


def compare_files(
    folder: Path, expected: Mapping[str, str], checked: Callable[[str], None]
) -> list[Finding]:
    """Compares files with their recorded SHA-256.

    Args:
        folder: the folder of the files.
        expected: hex digest by file name.
        checked: called with the name of each file that is checked.

    Returns:
        One finding per file that is missing or differs from what was written.

    Raises:
        StorageError: a file cannot be read.
    """
    findings = []
    for file, digest in expected.items():
        checked(file)
        try:
            actual = file_sha256(folder / file)
        except OSError as e:
            findings.append(Finding(file, None, e.strerror or str(e)))
            continue
        if actual != digest:
            findings.append(Finding(file, None, "its content is not what was written"))
    return findings
