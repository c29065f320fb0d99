"""Start of the probing process: one argument, the order of the suite."""

from __future__ import annotations

import json
import sys

from casemate.device.escape.subject import main

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
