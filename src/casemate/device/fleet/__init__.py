"""A device's place in a fleet: who it belongs to, what it was ordered, and how it carries that out.

`membership` is fixed at enrolment, `orders` is the state machine of commands, `fence` and `destroy` are what quarantine
and wipe do to the machine. The agent's `device.respond` ties them together; the `link` process only carries bytes.
"""
