"""The people of a fleet: who they are (passkeys), how long that is believed (sessions), what each may do (roles)."""
