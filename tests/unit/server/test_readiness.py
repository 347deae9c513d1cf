"""What probes are told, row by row (spec/protocol.md 5.6; D11)."""

import pytest

from epp.server.readiness import Readiness

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"

READY = ("", "readiness", EXT_PROC)
OTHERS = ("inference-extension", "Readiness", "grpc.health.v1.Health")


@pytest.mark.parametrize(
    ("synced", "learnt", "draining", "ready", "others"),
    [
        (False, False, False, False, False),
        (True, False, False, False, True),
        (True, True, False, True, True),
        (True, True, True, False, False),
        (True, False, True, False, False),
        (False, False, True, False, False),
    ],
)
def test_every_row(*, synced: bool, learnt: bool, draining: bool, ready: bool, others: bool) -> None:
    """Traffic waits for what routing needs; a restart never helps while the loop answers; nothing new while draining."""
    readiness = Readiness()
    readiness.synced, readiness.learnt, readiness.draining = synced, learnt, draining

    assert {service: readiness.serving(service) for service in (*READY, *OTHERS, "liveness")} == {
        **dict.fromkeys(READY, ready),
        **dict.fromkeys(OTHERS, others),
        "liveness": True,
    }
