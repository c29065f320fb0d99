"""`python -m casemate.device.service setup|agent|update|fence`: what the units start."""

from __future__ import annotations

import sys

from casemate import config
from casemate.device.fleet import fencing
from casemate.device.home import Home
from casemate.device.service.run import run
from casemate.device.service.setup import begin_unit, setup
from casemate.device.service.updates import take_updates
from casemate.device.units_link import role_uids
from casemate.errors import CasemateError, OperationError


def main(verb: str) -> int:
    """Do one step; errors go to the unit's log as `error:` and `hint:`."""
    home, settings = Home(config.home_path()), config.load()
    try:
        if verb == "fence":
            why = fencing.enforce(home)
            if why:
                raise OperationError(f"the network is not fenced as wanted: {why}")
        elif verb == "setup":
            setup(home, settings, begin=begin_unit)
        elif verb == "update":
            return take_updates(home, settings)
        else:
            run(home, settings, role_uids())
    except CasemateError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
