"""Casemate: a fortified chamber for on-device AI."""

__version__ = "0.1.0"
