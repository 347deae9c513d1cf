"""Scraping live servers: good pages, garbage, errors, silence, and servers that come and go."""

import socket
import ssl
from collections.abc import Callable

import pytest
from aiohttp import web

from epp import names
from epp.datastore import EndpointReached, MetricsScraped
from epp.domain import Endpoint, EndpointId
from epp.errors import ConfigError
from epp.sources.engine_metrics import ENGINES, VLLM, EngineMetrics
from epp.sources.metrics import Extraction, ScrapeSettings
from epp.testing.waiting import eventually
from tests.integration.metrics_source.rig import SELDOM, TLS, ModelServer, Rig, listening, page, running


async def test_the_pool_follows_what_the_servers_say() -> None:
    """Two servers with vLLM's real page; every change of their load arrives."""
    async with listening(ModelServer()) as a, listening(ModelServer()) as b, running(Rig(), a.endpoint("a"), b.endpoint("b")) as rig:
        a.says(3)
        b.says(4)
        await eventually(lambda: rig.waiting() == [3, 4])
        a.says(5)
        await eventually(lambda: rig.waiting() == [5, 4])
        metrics = rig.pool.snapshot().endpoints[0].metrics
        assert (metrics.block_size, metrics.num_blocks, metrics.max_loras) == (32, 32768, 1)
        assert metrics.updated_at is not None
        assert not rig.notes.failures
        assert not rig.notes.missing


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: web.Response(text="<html>hello</html>"), "parse"),
        (lambda: web.Response(text="# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting many\n"), "parse"),
        (lambda: web.Response(body=b"#" * ((8 << 20) + 1)), "parse"),
        (lambda: web.Response(status=500, text=page(9)), "status"),
        (lambda: web.Response(status=302, headers={"Location": "/metrics"}), "status"),
        (lambda: web.Response(headers={"Content-Encoding": "gzip"}, body=b"not gzip"), "connect"),
    ],
)
async def test_a_bad_answer_is_reported_and_the_last_metrics_stay(answer: Callable[[], web.StreamResponse], reason: str) -> None:
    """Each time it fails, and once when it is good again; a neighbour does not notice."""
    async with (
        listening(ModelServer()) as bad,
        listening(ModelServer()) as good,
        running(Rig(), bad.endpoint("a"), good.endpoint("b")) as rig,
    ):
        bad.says(3)
        await eventually(lambda: rig.waiting()[0] == 3)
        bad.answer = answer
        await eventually(lambda: rig.notes.failures["default/a", reason] >= 1)
        last = rig.pool.snapshot().endpoints[0].metrics
        await eventually(lambda: rig.notes.failures["default/a", reason] >= 3)
        good.says(7)
        await eventually(lambda: rig.waiting() == [3, 7])
        assert rig.pool.snapshot().endpoints[0].metrics is last
        assert set(rig.notes.failures) == {("default/a", reason)}
        bad.says(4)
        await eventually(lambda: rig.waiting() == [4, 7])
        assert rig.notes.recovered == {"default/a": 1}


async def test_a_server_that_is_down_comes_back() -> None:
    """Nobody listens: reported; then somebody does."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    down = Endpoint(EndpointId("default/a"), "127.0.0.1", port)
    async with running(Rig(), down) as rig:
        await eventually(lambda: rig.notes.failures["default/a", "connect"] >= 2)
        server = ModelServer()
        server.says(6)
        async with listening(server, port):
            await eventually(lambda: rig.waiting() == [6])
        await eventually(lambda: rig.notes.recovered == {"default/a": 1} and rig.notes.failures["default/a", "connect"] >= 3)


async def test_a_silent_server_times_out_and_only_one_request_waits() -> None:
    """It accepts and says nothing: at most one request is open to it."""
    async with listening(ModelServer()) as silent, running(Rig(), silent.endpoint()) as rig:
        await eventually(lambda: rig.applied["default/a"] > 0)
        asked, silent.silent = silent.asked, True
        await eventually(lambda: rig.notes.failures["default/a", "timeout"] == 1)
        assert silent.asked <= asked + 3
        silent.silent = False
        silent.says(2)
        await eventually(lambda: rig.waiting() == [2])


async def test_a_fleet_is_asked_one_after_the_other() -> None:
    """A burst of pages, every twentieth of a second, would make requests wait for it: the turns of endpoints are spread over the interval."""
    async with (
        listening(ModelServer()) as a,
        listening(ModelServer()) as b,
        listening(ModelServer()) as c,
        running(Rig(SELDOM), a.endpoint("a"), b.endpoint("b"), c.endpoint("c")) as rig,
    ):
        await eventually(lambda: rig.applied["default/a"] > 0)
        assert (a.asked, b.asked, c.asked) == (1, 0, 0)


async def test_an_endpoint_that_leaves_is_left_alone() -> None:
    """And one that comes, or moves to another port, is scraped at once."""
    async with listening(ModelServer()) as a, listening(ModelServer()) as b, running(Rig(), a.endpoint("a")) as rig:
        await eventually(lambda: a.asked > 2)
        b.says(8)
        rig.sync([b.endpoint("a")])
        await eventually(lambda: rig.waiting() == [8])
        asked = a.asked
        await eventually(lambda: b.asked > 10)
        assert a.asked == asked
        rig.sync([])
        rig.sync([a.endpoint("b"), b.endpoint("a")])
        await eventually(lambda: a.asked > asked and rig.waiting() == [0, 8])


async def test_each_endpoint_is_read_in_the_words_of_its_engine() -> None:
    """By label, current or legacy; an unknown engine is read as the default one, and what it lacks is named."""
    sglang = "# TYPE sglang:num_queue_reqs gauge\nsglang:num_queue_reqs 5\n"
    async with (
        listening(ModelServer()) as server,
        running(
            Rig(),
            server.endpoint("new", **{names.ENGINE_TYPE_LABEL: "sglang"}),
            server.endpoint("old", **{names.LEGACY_ENGINE_TYPE_LABEL: "sglang"}),
            server.endpoint("other", **{names.ENGINE_TYPE_LABEL: "unheard-of"}),
        ) as rig,
    ):
        server.answer = lambda: web.Response(text=sglang)
        await eventually(lambda: rig.waiting() == [5, 5, 0])
        await eventually(lambda: ("default/other", VLLM.queued) in rig.notes.missing)
        assert ("default/new", "sglang:token_usage") in rig.notes.missing


async def test_port_and_path_may_be_others() -> None:
    """A side car exports the metrics."""
    server, paths = ModelServer(), set[str]()

    async def handle(request: web.Request) -> web.StreamResponse:
        paths.add(request.path)
        return web.Response(text=page(1))

    server.handle = handle  # type: ignore[method-assign]  # the one test that looks at the request
    async with listening(server):
        settings = ScrapeSettings(interval_s=0.01, port=server.port, path="/side/metrics")
        async with running(Rig(settings), Endpoint(EndpointId("default/a"), "127.0.0.1", 1)) as rig:
            await eventually(lambda: rig.waiting() == [1])
    assert paths == {"/side/metrics"}


@pytest.mark.parametrize(
    ("settings", "trusted"),
    [
        (ScrapeSettings("https", interval_s=0.01), True),
        (ScrapeSettings("https", interval_s=0.01, verify_tls=True, ca_cert_path=str(TLS / "cert.pem")), True),
        (ScrapeSettings("https", interval_s=0.01, verify_tls=True), False),
    ],
)
async def test_https(settings: ScrapeSettings, *, trusted: bool) -> None:
    """A pod's own certificate is accepted, unless verification is asked for and the CA is not known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    server = ModelServer()
    server.says(4)
    async with listening(server, tls=context), running(Rig(settings), server.endpoint()) as rig:
        if trusted:
            await eventually(lambda: rig.waiting() == [4])
        else:
            await eventually(lambda: rig.notes.failures["default/a", "connect"] >= 2)
            assert rig.waiting() == [0]


@pytest.mark.parametrize(
    ("settings", "extraction", "says"),
    [
        (ScrapeSettings("ftp"), Extraction(), "scheme: 'ftp'"),
        (ScrapeSettings("https", ca_cert_path="/missing.pem"), Extraction(), "cannot use /missing.pem"),
        (ScrapeSettings(), Extraction(default_engine="vlm"), "defaultEngine: 'vlm' is no known engine; known are vllm, sglang"),
        (ScrapeSettings(), Extraction({**ENGINES, "x": EngineMetrics("a{", "b")}), "metric spec 'a{'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(settings: ScrapeSettings, extraction: Extraction, says: str) -> None:
    """With the parameter, its value and what would be right."""
    with pytest.raises(ConfigError) as caught:
        Rig(settings, extraction)
    assert says in str(caught.value)


async def test_a_defect_of_ours_does_not_end_the_scraping(caplog: pytest.LogCaptureFixture) -> None:
    """One endpoint's metrics cannot be applied: it is logged with the place, and goes on for all."""

    class Poisoned(Rig):
        def apply(self, event: MetricsScraped | EndpointReached) -> None:
            if event.endpoint == "default/a":
                raise ZeroDivisionError
            super().apply(event)

    server = ModelServer()
    server.says(2)
    async with listening(server), running(Poisoned(), server.endpoint("a"), server.endpoint("b")) as rig:
        await eventually(lambda: rig.waiting() == [0, 2] and rig.notes.failures["default/a", "internal"] >= 2)
    assert [record.exc_info is not None for record in caplog.records] == [True]
