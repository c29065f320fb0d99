"""A fetch in a process of its own, to be killed or to run out of disk: python fetching.py URL MANIFEST DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

from casemate.device.update import fetch
from casemate.device.update.assembly import Terms
from casemate.device.update.offer import Offered
from casemate.device.update.transport import Bounds, Transport, parse_endpoint
from casemate.errors import CasemateError
from casemate.formats import manifest


def main(url: str, file: str, directory: str) -> int:
    raw = Path(file).read_bytes()
    parsed = manifest.parse(raw)
    claimed = parsed.claimed
    verified = manifest.verify(parsed, path=claimed.target_path, size=parsed.size, sha256=parsed.sha256)

    def tell(progress):
        sys.stdout.write(f"{progress.done}\n")
        sys.stdout.flush()

    try:
        with Transport(parse_endpoint(url), bounds=Bounds(tries=2)) as source:
            offered = Offered(None, verified, raw)  # type: ignore[arg-type]
            got = fetch.fetch_release(source, offered, Path(directory), bases=(), terms=Terms(tell=tell))
    except CasemateError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{got.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
