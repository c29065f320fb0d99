"""Rollouts: a generation meets twenty devices before it meets a million, and statistics decide who is next.

Everything here is pure: observations and a time go in, a decision comes out. `service` persists and carries it out.
"""
