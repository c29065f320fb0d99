"""The attester: the one process that speaks to the TPM. It measures, quotes and opens credentials."""
