"""Updates of a device: whom it trusts, what it fetches, and how a new generation replaces the old one."""
