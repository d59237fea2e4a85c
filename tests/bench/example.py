"""pyfuse3's pass-through example: fetched when it is wanted, checked, and kept in the user's cache directory.

It is in pyfuse3's source distribution only, not in what pip installs, and it isn't chatfs's to copy.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

VERSION: Final = "3.5.0"
ARCHIVE_SHA256: Final = "88399a9494b88603230bba300f4ba9ad63fece5ed514ca3633d555a0c6a42b24"
"""As in requirements.lock."""
SHA256: Final = "ef1abf41b45ebfc042edb2e165fdbc2676b9764c0484ec7dcc835068a990b922"
"""Of examples/passthroughfs.py."""
_MEMBER: Final = f"pyfuse3-{VERSION}/examples/passthroughfs.py"


class Unavailable(Exception):
    """The example can't be had now."""


def cache_directory() -> Path:
    """Where it is kept: $XDG_CACHE_HOME/chatfs-bench."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatfs-bench"


def example(cache: Path | None = None) -> Path:
    """The script; raises Unavailable."""
    kept = (cache or cache_directory()) / f"passthroughfs-{VERSION}.py"
    try:
        if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == SHA256:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
            found = _fetch(Path(directory))
            fresh = Path(directory) / "fresh.py"
            fresh.write_bytes(found)
            fresh.replace(kept)
    except (OSError, tarfile.TarError, KeyError) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    return kept


def _fetch(directory: Path) -> bytes:
    wanted = directory / "wanted.txt"
    wanted.write_text(f"pyfuse3=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
    # pip reads a source distribution's metadata by way of what builds it: that is in the virtual environment.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "--require-hashes", "--dest", str(directory)]
    done = subprocess.run([*command, "-r", str(wanted)], check=False, capture_output=True, text=True)
    archive = directory / f"pyfuse3-{VERSION}.tar.gz"
    if done.returncode or not archive.exists():
        said = done.stderr.strip().split("\n")[-1] or f"no {archive.name}"
        raise Unavailable(f"pip could not download pyfuse3 {VERSION}: {said}")
    with tarfile.open(archive) as opened:
        member = opened.extractfile(_MEMBER)
        content = b"" if member is None else member.read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise Unavailable(f"{_MEMBER} isn't the one that is known")
    return content
