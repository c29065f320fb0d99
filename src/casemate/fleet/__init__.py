"""The fleet server: enrols devices, proves what they run, gates their keys, sends signed commands.

It shares no process and no module with a device; they meet in `formats`.
"""
