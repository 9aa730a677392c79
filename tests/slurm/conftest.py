"""One cluster of two nodes for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing_programs, start_cluster


@pytest.fixture(scope="session")
def cluster(require) -> Iterator[Cluster]:
    lacking = missing_programs()
    require(not lacking, f"needs Slurm and munge (apt-get install slurm-wlm munge); missing: {', '.join(lacking)}")
    with start_cluster() as found:
        yield found
