"""`/api/v1`: what programs of people reach, with a token of their own. OpenAPI 3.1 at `/api/v1/openapi.json`."""
