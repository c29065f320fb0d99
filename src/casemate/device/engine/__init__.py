"""The engine: one process, one model, no rights. It parses hostile things: weights, prompts, grammars.

It holds a model's plaintext and the prompts of the moment; it has no key, no path, no network and no way to run a
program.
`python -m casemate.device.engine` is started by `casemate.device.sandbox.spawn`; see `__main__` for the order of steps.
"""
