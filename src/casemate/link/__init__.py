"""The device's connection to a fleet: mutual TLS, check-ins, the wake stream. It carries bytes and decides nothing."""
