"""Usage numbers for the fleet, off unless the owner switches them on: noise is added here, before anything leaves.

The gateway counts, the agent keeps, and once in a period one question is answered with noise (`randomize`), paid for
(`ledger`) and sent (`reporter`). The file between them is `diary`; the owner's word is `choice`.
"""
