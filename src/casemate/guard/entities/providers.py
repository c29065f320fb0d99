"""Secrets whose form is too plain to stand alone: the issuer's name beside them says what they are.

One row: words of which one must stand in the name before the value, the value's form, the kind. Rows for one issuer go
from the most to the least special form.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Provider(NamedTuple):
    """An issuer's plain secret."""

    kind: str
    names: str
    value: str


_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

PROVIDERS: Final[tuple[Provider, ...]] = (
    Provider("adafruit-api-key", "adafruit", r"[\w\-]{32}"),
    Provider("adobe-client-id", "adobe", r"[a-f0-9]{32}"),
    Provider("airtable-api-key", "airtable", r"[a-z0-9]{17}"),
    Provider("algolia-api-key", "algolia", r"[a-z0-9]{32}"),
    Provider("alibaba-secret-key", "alibaba aliyun", r"[a-z0-9]{30}"),
    Provider("asana-client-id", "asana", r"\d{16}"),
    Provider("asana-client-secret", "asana", r"[a-z0-9]{32}"),
    Provider("assemblyai-api-key", "assemblyai", r"[a-f0-9]{32}"),
    Provider("aws-secret-access-key", "aws amazon", r"[A-Za-z0-9/+=]{40}"),
    Provider("bitbucket-client-id", "bitbucket", r"[a-z0-9]{32}"),
    Provider("bitbucket-client-secret", "bitbucket", r"[\w\-=]{64}"),
    Provider("bittrex-access-key", "bittrex", r"[a-z0-9]{32}"),
    Provider("box-client-secret", "box", r"[A-Za-z0-9]{32}"),
    Provider("cloudflare-global-api-key", "cloudflare", r"[a-f0-9]{37}"),
    Provider("cloudflare-api-key", "cloudflare", r"[\w\-]{40}"),
    Provider("cisco-meraki-api-key", "meraki", r"[0-9a-f]{40}"),
    Provider("codecov-access-token", "codecov", r"[a-z0-9]{32}"),
    Provider("cohere-api-token", "cohere", r"[a-zA-Z0-9]{40}"),
    Provider("coinbase-access-token", "coinbase", r"[\w\-]{64}"),
    Provider("confluent-access-token", "confluent", r"[a-z0-9]{16}"),
    Provider("confluent-secret-key", "confluent", r"[a-z0-9]{64}"),
    Provider("contentful-delivery-api-token", "contentful", r"[\w=\-]{43}"),
    Provider("datadog-access-token", "datadog", r"[a-z0-9]{40}"),
    Provider("datadog-api-key", "datadog", r"[a-f0-9]{32}"),
    Provider("deepgram-api-key", "deepgram", r"[a-f0-9]{40}"),
    Provider("deepseek-api-key", "deepseek", r"sk-[a-f0-9]{32}"),
    Provider("discord-client-id", "discord", r"\d{17,20}"),
    Provider("discord-api-token", "discord", r"[a-f0-9]{64}"),
    Provider("discord-client-secret", "discord", r"[\w=\-]{32}"),
    Provider("droneci-access-token", "droneci drone", r"[a-z0-9]{32}"),
    Provider("dropbox-api-token", "dropbox", r"[a-z0-9]{15}"),
    Provider("etsy-access-token", "etsy", r"[a-z0-9]{24}"),
    Provider("facebook-secret", "facebook", r"[a-f0-9]{32}"),
    Provider("fastly-api-token", "fastly", r"[\w=\-]{32}"),
    Provider("finicity-api-token", "finicity", r"[a-f0-9]{32}"),
    Provider("finicity-client-secret", "finicity", r"[a-z0-9]{20}"),
    Provider("finnhub-access-token", "finnhub", r"[a-z0-9]{20}"),
    Provider("flickr-access-token", "flickr", r"[a-z0-9]{32}"),
    Provider("freshbooks-access-token", "freshbooks", r"[a-z0-9]{64}"),
    Provider("gitter-access-token", "gitter", r"[\w\-]{40}"),
    Provider("google-maps-signing-secret", "google", r"[\w\-]{27}="),
    Provider("hashicorp-tf-password", "administrator_login_password", r"\"?[\w=\-]{8,32}\"?"),
    Provider("heroku-api-key", "heroku", _UUID),
    Provider("hubspot-api-key", "hubspot", _UUID),
    Provider("intercom-api-key", "intercom", r"[\w=\-]{60}"),
    Provider("jfrog-identity-token", "jfrog artifactory", r"[a-z0-9]{64}"),
    Provider("jfrog-api-key", "jfrog artifactory", r"[a-z0-9]{73}"),
    Provider("kraken-access-token", "kraken", r"[A-Za-z0-9/=+\-_]{80,90}"),
    Provider("kucoin-access-token", "kucoin", r"[a-f0-9]{24}"),
    Provider("kucoin-secret-key", "kucoin", _UUID),
    Provider("linkedin-client-id", "linkedin", r"[a-z0-9]{14}"),
    Provider("linkedin-client-secret", "linkedin", r"[a-z0-9]{16}"),
    Provider("looker-client-id", "looker", r"[a-z0-9]{20}"),
    Provider("looker-client-secret", "looker", r"[a-z0-9]{24}"),
    Provider("mattermost-access-token", "mattermost", r"[a-z0-9]{26}"),
    Provider("messagebird-api-token", "messagebird", r"[a-z0-9]{25}"),
    Provider("messagebird-client-id", "messagebird", _UUID),
    Provider("mistral-api-key", "mistral", r"[A-Za-z0-9]{32}"),
    Provider("netlify-access-token", "netlify", r"[\w=\-]{40,46}"),
    Provider("new-relic-user-api-id", "newrelic relic", r"[a-z0-9]{64}"),
    Provider("nytimes-access-token", "nytimes", r"[\w=\-]{32}"),
    Provider("plaid-client-id", "plaid", r"[a-z0-9]{24}"),
    Provider("plaid-secret-key", "plaid", r"[a-z0-9]{30}"),
    Provider("privateai-api-token", "privateai", r"[a-z0-9]{32}"),
    Provider("rapidapi-access-token", "rapidapi", r"[\w\-]{50}"),
    Provider("sendbird-access-token", "sendbird", r"[a-f0-9]{40}"),
    Provider("sendbird-access-id", "sendbird", _UUID),
    Provider("sentry-access-token", "sentry", r"[a-f0-9]{64}"),
    Provider("sidekiq-secret", "sidekiq contribsys bundle", r"[a-f0-9]{8}:[a-f0-9]{8}"),
    Provider("snyk-api-token", "snyk", _UUID),
    Provider("squarespace-access-token", "squarespace", _UUID),
    Provider("sumologic-access-id", "sumo sumologic", r"su[a-zA-Z0-9]{12}"),
    Provider("sumologic-access-token", "sumo sumologic", r"[a-zA-Z0-9]{64}"),
    Provider("travisci-access-token", "travis travisci", r"[a-z0-9]{22}"),
    Provider("trello-access-token", "trello", r"[a-zA-Z0-9]{32}"),
    Provider("together-api-key", "together", r"[a-f0-9]{64}"),
    Provider("twitch-api-token", "twitch", r"[a-z0-9]{30}"),
    Provider("twitter-api-key", "twitter", r"[a-zA-Z0-9]{25}"),
    Provider("twitter-access-token", "twitter", r"\d{15,25}-[a-zA-Z0-9]{20,40}"),
    Provider("twitter-access-secret", "twitter", r"[a-zA-Z0-9]{45}"),
    Provider("twitter-api-secret", "twitter", r"[a-zA-Z0-9]{50}"),
    Provider("unsplash-access-key", "unsplash", r"[\w\-]{43}"),
    Provider("weights-and-biases-api-key", "wandb", r"[a-f0-9]{40}"),
    Provider("zendesk-secret-key", "zendesk", r"[a-z0-9]{40}"),
)


def _by_name() -> dict[str, tuple[tuple[re.Pattern[str], str], ...]]:
    table: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    for row in PROVIDERS:
        pattern = re.compile(row.value, re.IGNORECASE)
        for name in row.names.split():
            table.setdefault(name, []).append((pattern, row.kind))
    return {name: tuple(rows) for name, rows in table.items()}


BY_NAME: Final = _by_name()


def kind_of(words: list[str], value: str) -> str | None:
    """Return the kind of *value* when one of *words* (lower case) is an issuer whose secrets look like it."""
    for word in words:
        for pattern, kind in BY_NAME.get(word, ()):
            if pattern.fullmatch(value):
                return kind
    return None
