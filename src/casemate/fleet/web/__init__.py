"""The console in the browser: pages made on the server, passkeys, no script from anywhere else.

`routes` is the table of what exists; `visit` is the edge every request passes; the other modules are the pages.
"""
