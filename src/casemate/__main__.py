"""`python -m casemate`."""

from casemate.cli.main import main

main()
