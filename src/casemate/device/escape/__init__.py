"""Attempts to break out of the engine's sandbox, each proven to work without it.

`suite.run_suite` is `casemate sandbox test`: every probe of `catalogue` runs outside (the positive control) and inside
the very sandbox that the engine runs in. `world` makes the targets and watches them from outside; `subject` is the
process that tries. The probes leave nothing behind and touch nothing that is not theirs.
"""
