"""`python -m casemate.device.gateway`: started by the agent."""

from casemate.device.gateway.serve import run
from casemate.device.process import boot

if __name__ == "__main__":
    run(boot("gateway"))
