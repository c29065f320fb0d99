"""Usage numbers for the fleet, off unless the owner switches them on: noise is added here, before anything leaves.

`randomize` holds the mechanisms, `ledger` what they have cost. The server sees reports and nothing else.
"""
