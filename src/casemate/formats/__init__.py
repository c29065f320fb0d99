"""Bytes to checked objects and back: limits first, no I/O, no clock."""
