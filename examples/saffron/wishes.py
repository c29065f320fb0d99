# ruff: noqa: INP001 - a script's module, not a package
"""Where wishes are kept between two evenings: one JSON file that only its owner can read, or nowhere."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path


class WishesError(Exception):
    """The file cannot be used; the message says what to do."""


def load(path: Path) -> dict[str, str]:
    """Return each person's words; empty when there is no file yet.

    Raises:
        WishesError: others can read the file, or it is not ours.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WishesError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(fd, encoding="utf-8") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise WishesError(f"others can read {path}; run: chmod 600 {path}")
        try:
            people = json.load(file)["people"]
        except (ValueError, KeyError, TypeError) as error:
            raise WishesError(f"{path} is not a file of wishes") from error
    if not isinstance(people, dict) or not all(isinstance(words, str) for words in people.values()):
        raise WishesError(f"{path} is not a file of wishes")
    return people


def save(path: Path, people: dict[str, str]) -> None:
    """Replace the file; it is private from its first byte on."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump({"schema": 1, "people": people}, file, ensure_ascii=False, indent=1)
        file.write("\n")
    temporary.replace(path)
