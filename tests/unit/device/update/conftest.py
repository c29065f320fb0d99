from __future__ import annotations

import pytest

from support import mirror, published


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A repository with one release, promoted."""
    folder = tmp_path_factory.mktemp("template")
    repository = published.create(folder / "repository")
    published.put(repository, folder / "spec", "1.0")
    return folder / "repository"


@pytest.fixture
def repository(template, tmp_path):
    return published.copy(template, tmp_path / "repository")


@pytest.fixture
def server(repository):
    with mirror.serving(repository.public) as running:
        yield running


@pytest.fixture
def device(tmp_path, repository, server):
    """The `update/` part of a device that trusts the repository."""
    directory = tmp_path / "update"
    published.follow(directory, repository, server.url)
    return directory
