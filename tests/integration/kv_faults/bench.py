"""Simulated pods, epp's event plane listening to them, and the comparison of what it believes with what the engines hold.

The engine is the witness: it shares no code with the index, and the two are compared through token ids. Each prompt that was
ever computed is looked up in both, so every block is seen that could be credited; the number of blocks tells of any other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from epp import names
from epp.domain import Endpoint, EndpointId
from epp.simulator.config import FleetConfig, PodEndpoint
from epp.simulator.conversations import conversation
from epp.simulator.fleet import Fleet
from epp.simulator.hashing import BlockHasher
from epp.simulator.model import ServedModel
from epp.simulator.pod import Pod
from epp.sources.kv_messages import Timing
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK, Rig


@dataclass
class Traffic:
    """Prompts of a few families, some longer than others, some again."""

    rng: random.Random = field(default_factory=lambda: random.Random(7))
    families: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.families = [self.text(64) for _ in range(6)]

    def text(self, length: int) -> list[int]:
        """Tokens nobody else says."""
        return [self.rng.randrange(1000, 90_000) for _ in range(length)]

    def prompt(self) -> list[int]:
        """The next one."""
        return [*self.rng.choice(self.families), *self.text(self.rng.choice((1, 40, 100)))]


class Bench:
    """Pods of one or several fleets; each is heard as the endpoint of its name."""

    def __init__(
        self, *configs: FleetConfig, model: ServedModel, timing: Timing = QUICK, replay: bool = True, rig: Rig | None = None
    ) -> None:
        """`replay`: epp knows of the replay sockets. `rig`: what listens, if not one made here."""
        self.fleets = [Fleet(config, model) for config in configs]
        self.rig = rig or Rig(timing=timing)
        self.traffic = Traffic()
        self._replay = replay
        self._model = model
        self._hashers = [BlockHasher(config.hash_seed) for config in configs for _ in range(config.pods)]
        self._computed: list[list[int]] = []
        """Every prompt and answer, as far as it was computed."""

    async def start(self) -> None:
        """Return when epp hears every pod, or waits for those that connect to it."""
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        for fleet in self.fleets:
            await fleet.start()
        self._discover()
        await self.rig.settled()
        dialled = [endpoint.name for endpoint in self.endpoints if endpoint.events_port]
        await eventually(lambda: all(self.rig.state(name) == "live" for name in dialled))

    async def stop(self) -> None:
        """End everything."""
        await self._http.close()
        await self.rig.source.stop()
        for fleet in self.fleets:
            await fleet.stop()

    async def replace(self, index: int, config: FleetConfig) -> None:
        """Roll a fleet over to another version."""
        await self.fleets[index].stop()
        fleet = self.fleets[index] = Fleet(config, self._model)
        await fleet.start()
        self._discover()

    def _discover(self) -> None:
        self.endpoints = [endpoint for fleet in self.fleets for endpoint in fleet.endpoints]
        self.rig.source.sync([self._listed(endpoint) for endpoint in self.endpoints])

    @property
    def pods(self) -> list[Pod]:
        """Those that live now."""
        return [pod for fleet in self.fleets for pod in fleet.pods]

    @property
    def pod(self) -> Pod:
        """The one that goes wrong."""
        return self.pods[0]

    # --- what users and operators do ------------------------------------------------------------------------------
    async def chat(self, text: str, pod: int = 0) -> None:
        """One chat."""
        status, reply = await self.call("POST", "/v1/chat/completions", pod, json=_chat(text))
        assert status == 200, reply

    def tokens_of_chat(self, text: str) -> list[int]:
        """What the published files make of its prompt."""
        return self._model.tokenizer.chat(conversation(_chat(text)))

    async def call(self, method: str, path: str, pod: int = 0, **options: object) -> tuple[int, dict[str, object]]:
        """Status and JSON body of an answer."""
        url = f"{self.endpoints[pod].url}{path}"
        async with self._http.request(method, url, **options) as answer:  # type: ignore[arg-type]  # passed through
            return answer.status, await answer.json()

    async def go_wrong(self, **faults: object) -> None:
        """From now on these go wrong at pod 0."""
        status, body = await self.call("POST", "/faults", json=faults)
        assert status == 200, body

    async def recover(self) -> None:
        """Nothing goes wrong any more, and another batch follows, which shows what was lost."""
        await self.call("DELETE", "/faults")
        await self.ask(self.traffic.text(65))

    async def ask(self, prompt: Sequence[int], *, pod: int = 0, answer: int = 1, **fields: object) -> int:
        """One request; how many tokens of it were cached."""
        body = {"model": "tiny", "prompt": list(prompt), "max_tokens": answer, "ignore_eos": True, **fields}
        status, reply = await self.call("POST", "/v1/completions", pod, json=body)
        assert status == 200, reply
        said = self._model.writer.write(prompt, max_tokens=answer, ignore_eos=True).tokens
        self._computed.append([*prompt, *said[:-1]])
        cached: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]  # type: ignore[index]  # vLLM's shape
        return cached

    async def serve(self, times: int, pods: Sequence[int] | None = None) -> None:
        """So many requests to each pod, one after another."""
        for _ in range(times):
            prompt, answer = self.traffic.prompt(), self.traffic.rng.choice((1, 1, 20))
            for pod in range(len(self.pods)) if pods is None else pods:
                await self.ask(prompt, pod=pod, answer=answer)

    async def all_heard(self) -> None:
        """Return when batches of every pod arrive. Those before are lost without a replay, so the caches are emptied, which the next batch tells."""

        async def arrive() -> bool:
            for pod in range(len(self.pods)):
                await self.ask(self.traffic.text(65), pod=pod)
            return all(self.blocks_credited(pod) for pod in range(len(self.pods)))

        await eventually(arrive)
        for pod in range(len(self.pods)):
            await self.call("POST", "/reset_prefix_cache", pod)

    async def restart(self, down_s: float = 0.0) -> None:
        """Kill pod 0; returns when another process serves in its place."""
        before = self.pod
        status, _ = await self.call("POST", f"/restart?down_s={down_s}")
        assert status == 202
        await eventually(lambda: self.pod is not before)

    # --- what is believed, and what is true -----------------------------------------------------------------------
    def is_right(self, pod: int = 0) -> bool:
        """Whether the index holds exactly what the engine holds."""
        return self.blocks_credited(pod) == len(self.pods[pod].engine.pool.cached) and all(
            self.credited(pod, tokens) == self.held(pod, tokens) for tokens in self._computed
        )

    def credits_too_much(self, pod: int = 0) -> bool:
        """Whether a request would be sent here for blocks that are gone."""
        return any(self.credited(pod, tokens) > self.held(pod, tokens) for tokens in self._computed)

    async def becomes_right(self) -> None:
        """The index agrees with all engines, soon."""
        try:
            await eventually(lambda: all(map(self.is_right, range(len(self.pods)))))
        except TimeoutError:
            raise AssertionError(self._difference()) from None

    def _difference(self) -> str:
        lines = [f"{self.rig.notes.states}, gaps {len(self.rig.notes.gaps)}, errors {self.rig.notes.errors[:5]}"]
        for i, pod in enumerate(self.pods):
            pairs = [(self.credited(i, tokens), self.held(i, tokens)) for tokens in self._computed]
            lines.append(f"{pod.name}: {self.blocks_credited(i)} blocks credited, {len(pod.engine.pool.cached)} held; by prompt {pairs}")
        return "\n".join(lines)

    def blocks_credited(self, pod: int) -> int:
        """Blocks the pod is believed to have."""
        return self.rig.index.blocks(EndpointId(self.endpoints[pod].name))

    def credited(self, pod: int, tokens: Sequence[int]) -> int:
        """Leading tokens the pod is believed to have."""
        return self.rig.hit_tokens(self.endpoints[pod].name, tokens)

    def held(self, pod: int, tokens: Sequence[int]) -> int:
        """Leading tokens the engine has."""
        engine, hasher = self.pods[pod].engine, self._hashers[pod]
        size = engine.config.block_size
        digests: list[bytes] = []
        for start in range(0, len(tokens) // size * size, size):
            digests.append(hasher.digest(digests[-1] if digests else None, tokens[start : start + size], None))
        return len(engine.pool.longest_hit(digests, len(digests))) * size

    def _listed(self, at: PodEndpoint) -> Endpoint:
        labels = {names.KV_EVENTS_PORT_LABEL: str(at.events_port)} if at.events_port else {}
        if self._replay and at.events_port:
            labels[names.KV_REPLAY_PORT_LABEL] = str(at.replay_port)
        return Endpoint(EndpointId(at.name), at.host, at.port, labels)


def _chat(text: str) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 30, "ignore_eos": True}
