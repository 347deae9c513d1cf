"""An index, and what it reports."""

import pytest

from epp.kvcache.index import PrefixIndex
from tests.unit.kvcache.feeding import Recorder


@pytest.fixture
def reporter() -> Recorder:
    return Recorder()


@pytest.fixture
def index(reporter: Recorder) -> PrefixIndex:
    return PrefixIndex(reporter, default_block_size=4)
