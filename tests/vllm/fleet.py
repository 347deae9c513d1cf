"""Real engines behind a real Envoy and epp, as a client and an operator meet them; what epp decided, from its decision log."""

import contextlib
import json
import logging
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from epp import names
from epp.demo import configs, decisions, parity
from epp.demo.fleet import HOST
from epp.demo.processes import Process, Processes
from epp.demo.records import Choice, Mode
from epp.demo.vllm.engine import Engine, Ports
from epp.testing import bootstrap
from epp.testing.envoy import EnvoyProcess
from epp.testing.picker import PickerProcess
from epp.testing.waiting import eventually
from tests.vllm.cache_model import CacheModel
from tests.vllm.launch import MODEL, launch, ready

logger = logging.getLogger(__name__)

CHAT: Final = "/v1/chat/completions"
# An engine spends 5 ms of CPU on a page of metrics.
METRICS_INTERVAL: Final = "250ms"
_WORDS: Final = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "jungle", "kettle", "lantern", "meadow", "north"),
    *("orchard", "prairie", "quarry", "river", "summit", "thicket", "umbra", "valley", "willow", "yonder", "zephyr", "anchor", "beacon"),
)


def words(rng: random.Random, count: int) -> str:
    """A text nobody else says."""
    return " ".join(rng.choice(_WORDS) for _ in range(count))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got, and what the engine said it did for it."""

    id: str
    status: int
    engine: str = ""
    """Who answered."""
    prompt: Sequence[int] = ()
    """Token ids, as the engine made them."""
    spoken: Sequence[int] = ()
    cached: int = 0
    """Tokens of the prompt it found in its cache."""

    @property
    def computed(self) -> Sequence[int]:
        """All tokens whose keys and values were computed."""
        return [*self.prompt, *self.spoken[:-1]]


@dataclass(slots=True)
class Unit:
    """One engine, and how it is started."""

    engine: Engine
    model: Path
    flags: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    block_size: int = 32
    labels: bool = True
    """The endpoints file says where it publishes."""
    process: Process | None = None

    @property
    def entry(self) -> dict[str, object]:
        """In the endpoints file."""
        return self.engine.endpoint if self.labels else {**self.engine.endpoint, "labels": {}}

    async def start(self, processes: Processes) -> None:
        """It may not be ready yet."""
        self.process = await launch(processes, self.engine.name, self.model, self.engine.ports, self.flags, self.variables)

    async def ready(self, processes: Processes) -> None:
        """Return when it serves."""
        assert self.process is not None
        await ready(processes, self.process, self.engine.ports)

    def kill(self) -> None:
        """kill -9, all of it."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(slots=True)
class Fleet:
    """Everything, up."""

    units: Sequence[Unit]
    processes: Processes
    http: aiohttp.ClientSession
    picker: PickerProcess
    envoy: EnvoyProcess
    log: Path
    held: dict[str, CacheModel] = field(default_factory=dict)
    """What each engine computed, by its answers; only what no test emptied or evicted can be compared with it."""
    sent: int = 0
    predictions: int = 0
    """Answers to requests that went through epp since it started: each was a prediction, if epp had its tokens."""

    @property
    def url(self) -> str:
        """Of Envoy, which asks epp."""
        return f"http://{HOST}:{self.envoy.port}"

    def unit(self, name: str) -> Unit:
        """The engine of that name."""
        return next(unit for unit in self.units if unit.engine.name == name)

    # --- clients ------------------------------------------------------------------------------------------------
    async def chat(self, text: str, question: str = "So?", *, url: str = "", model: str | None = MODEL, **fields: object) -> Answer:
        """One chat through epp, or with `url` past it. `model` None: it names none."""
        self.sent += 1
        request_id = f"chat-{self.sent}"
        messages = [{"role": "system", "content": text}, {"role": "user", "content": question}]
        named = {} if model is None else {"model": model}
        body = {**named, "messages": messages, "max_tokens": 4, "return_token_ids": True, **fields}
        async with self.http.post((url or self.url) + CHAT, json=body, headers={names.REQUEST_ID: request_id}) as response:
            engine = self._name(response.headers.get(names.INFERENCE_POD, (url or "").removeprefix("http://")))
            if response.status != 200:
                return Answer(request_id, response.status, engine)
            said: dict[str, Any] = await response.json()
        self.predictions += not url
        cached = said["usage"]["prompt_tokens_details"]["cached_tokens"]
        answer = Answer(request_id, 200, engine, said["prompt_token_ids"], said["choices"][0]["token_ids"], cached)
        owner = (model if model and model != MODEL else ""), str(fields.get("cache_salt", ""))
        self.held[engine].store(answer.computed, owner)
        return answer

    def direct(self, name: str) -> str:
        """Where an engine itself listens."""
        return f"http://{HOST}:{self.unit(name).engine.ports.http}"

    async def restart_picker(self) -> None:
        """kill -9, and another process in its place; returns when that is ready and Envoy asks it."""
        await self.picker.kill()
        await self.picker.restart()
        self.predictions = 0

        async def answers() -> bool:
            async with self.http.get(f"{self.url}/v1/models") as response:
                return response.status == 200

        await eventually(answers)

    async def post(self, name: str, path: str) -> None:
        """What an operator tells an engine."""
        async with self.http.post(self.direct(name) + path) as response:
            assert response.status == 200, await response.text()

    # --- what epp believes --------------------------------------------------------------------------------------
    async def choices(self, *request_ids: str) -> dict[str, Choice]:
        """The decisions, by request."""
        found: dict[str, Choice] = {}

        def logged() -> bool:
            found.update(decisions.read(self.log))
            return all(request_id in found for request_id in request_ids)

        await eventually(logged)
        return found

    async def ended(self, request_id: str) -> None:
        """Return when Envoy's log has told epp how this request ended."""

        def told() -> bool:
            lines = [json.loads(line) for line in self.log.read_bytes().splitlines()]
            ids = {line["id"] for line in lines if line["event"] == "decision" and line["request_id"] == request_id}
            return any(line["event"] == "end" and line["id"] in ids for line in lines)

        await eventually(told)

    async def credits(self, request_id: str) -> dict[str, int]:
        """Tokens of a request's prompt each engine was believed to hold."""
        choice = (await self.choices(request_id))[request_id]
        return {candidate.pod: candidate.matched_tokens for candidate in choice.candidates}

    async def wrong_predictions(self, answers: Sequence[Answer]) -> list[str]:
        """A line for each request whose engine found another hit than epp had foreseen there."""
        choices = await self.choices(*(answer.id for answer in answers))
        lines = []
        for answer in answers:
            foreseen = next(one.matched_tokens for one in choices[answer.id].candidates if one.pod == answer.engine)
            if foreseen != answer.cached:
                lines.append(f"{answer.id} on {answer.engine}: foreseen {foreseen}, found {answer.cached}")
        return lines

    async def blocks(self, name: str) -> int:
        """Blocks epp believes an engine to hold; told once a second."""
        return int((await self.picker.metrics()).get(f'epp_index_blocks{{endpoint="default/{name}"}}', 0))

    async def holds(self, name: str, least: int, most: int | None = None) -> None:
        """Return when epp believes the engine to hold so many blocks, without `most` exactly `least`."""

        async def told() -> bool:
            return least <= await self.blocks(name) <= (least if most is None else most)

        try:
            await eventually(told)
        except TimeoutError:
            log = self.picker.log()[-3000:]
            raise AssertionError(f"{name}: epp counts {await self.blocks(name)} blocks, not {least} to {most}\n{log}") from None

    async def knows(self, name: str) -> None:
        """Return when epp believes the engine to hold as much as it computed."""
        await self.holds(name, len(self.held[name]))

    async def parity(self) -> Mapping[str, int]:
        """How the predictions came out, all of them, that epp made since it started; no answer is open."""
        found: dict[str, int] = {}

        async def settled() -> bool:
            async with self.http.get(f"http://{HOST}:{self.picker.metrics_port}/metrics") as response:
                found.clear()
                found.update({result: count for result, count in parity.parse(await response.text()).items() if count})
            return sum(found.values()) >= self.predictions

        try:
            await eventually(settled)
        except TimeoutError:
            raise AssertionError(f"{self.predictions} predictions, settled: {found}") from None
        if found.keys() - {"confirmed"}:  # a failure, to most who ask: what was told meanwhile stands beside it
            logger.warning("predictions came out as %s; epp's log ends with:\n%s", found, self.picker.log()[-3000:])
        return found

    async def all_confirmed(self) -> bool:
        """Every prediction was confirmed."""
        return await self.parity() == {"confirmed": self.predictions}

    def _name(self, host_port: str) -> str:
        return next((unit.engine.name for unit in self.units if unit.engine.pod.http == host_port), host_port)


def config(folder: Path, model: Path, block_size: int, *, bind: str = "", lora_modules: Sequence[str] = ()) -> str:
    """The demo's configuration of precise routing. `bind`: where engines may connect to."""
    text = configs.render(Mode.PRECISE, endpoints=folder / "endpoints.json", model=MODEL, model_folder=model, block_size=block_size)
    loaded = json.loads(text)
    for plugin in loaded["plugins"]:
        if plugin["type"] == configs.PRODUCER and bind:
            plugin["parameters"]["kvEventsConfig"]["zmqEndpoint"] = bind
        if plugin["type"] == "token-producer" and lora_modules:
            plugin["parameters"]["local"]["loraModules"] = list(lora_modules)
    return json.dumps(loaded)


@contextlib.asynccontextmanager
async def fleet(
    folder: Path, units: Sequence[Unit], http: aiohttp.ClientSession, configuration: str, *, picker_first: bool = False
) -> AsyncIterator[Fleet]:
    """Engines, epp and Envoy. `picker_first`: epp is up, with nobody there, before any engine is."""
    (folder / "endpoints.json").write_text(json.dumps({"endpoints": [unit.entry for unit in units]}))
    log = folder / "decisions.jsonl"
    picker = PickerProcess([f"--config-text={configuration}", f"--decision-log={log}", f"--refresh-metrics-interval={METRICS_INTERVAL}"])
    async with contextlib.AsyncExitStack() as stack:
        processes = await stack.enter_async_context(Processes(folder))
        if picker_first:
            await stack.enter_async_context(picker)
        for unit in units:
            await unit.start(processes)
        for unit in units:
            await unit.ready(processes)
        if not picker_first:
            await stack.enter_async_context(picker)
        front = bootstrap.standalone(listener=0, admin=0, epp=picker.grpc_port, keep_request_id=True, tell_endpoint=True)
        envoy = await stack.enter_async_context(EnvoyProcess(front))
        yield Fleet(units, processes, http, picker, envoy, log, {one.engine.name: CacheModel(one.block_size) for one in units})


def ports_of(units: Sequence[Unit]) -> list[tuple[str, int]]:
    """Where the engines serve."""
    return [(HOST, unit.engine.ports.http) for unit in units]


def unit(name: str, at: Ports, model: Path, http: aiohttp.ClientSession, block_size: int, *flags: str, **variables: str) -> Unit:
    """An engine that publishes as the recipe has it."""
    own = ("--enable-prompt-tokens-details", *flags)
    return Unit(Engine(name, at, http), model, own, {"BLOCK_SIZE": str(block_size), **variables}, block_size)
