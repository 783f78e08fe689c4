"""Small files that tests write and let grow."""

from pathlib import Path


def write(path: Path, text: str | bytes) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def append(path: Path, text: str | bytes) -> None:
    """Let a file grow."""
    with open(path, "ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)
