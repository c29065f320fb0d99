"""Casemate as systemd units: one uid each, rendered from one table (see docs/adr/0006-service-units.md).

`table` says what every unit is and may do, `render` makes the files, `plan` decides what an installation writes and
runs, `install` does it. `setup` is the root step at every start, `run` is the agent when its processes are units.
"""
