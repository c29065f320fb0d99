"""The gateway process: HTTP in front of the engines. Holds app key hashes and prompts in flight; no device key.

listener   sockets, TLS, header and body deadlines          (uvicorn)
shell      Host check, request ids, security headers, the last catch of every error
routes     which path is which endpoint                     (Starlette)
auth       app keys, and throttling of wrong ones
schema     bytes -> typed requests; unknown fields are refused by name
limits     token buckets and day windows of each app
conversation, screening   the prompt as the engine gets it; the guard on the way in
engines    one link per model: slots, a bounded queue, deadlines, cancel
answer     the guard on the way out
generation, sse           one request from admission to the last byte
"""
