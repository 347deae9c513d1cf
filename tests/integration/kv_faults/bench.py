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
from epp.simulator.config import FleetConfig
from epp.simulator.conversations import conversation
from epp.simulator.fleet import Fleet
from epp.simulator.hashing import BlockHasher
from epp.simulator.model import ServedModel
from epp.simulator.pod import Pod
from epp.sources.kv_messages import Timing
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK, Rig

BLOCK_SIZE = 16


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
    """`pods[i]` is heard as endpoint "pod-i"."""

    def __init__(
        self, config: FleetConfig, model: ServedModel, *, timing: Timing = QUICK, replay: bool = True, rig: Rig | None = None
    ) -> None:
        """`replay`: epp knows of the replay sockets. `rig`: what listens, if not one made here."""
        self.fleet = Fleet(config, model)
        self.rig = rig or Rig(timing=timing)
        self.traffic = Traffic()
        self._replay = replay
        self._model = model
        self._computed: list[list[int]] = []
        """Every prompt and answer, as far as it was computed."""

    async def start(self) -> None:
        """Return when epp hears every pod."""
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        await self.fleet.start()
        self.rig.source.sync([self._endpoint(i) for i in range(len(self.fleet.endpoints))])
        await self.rig.settled()
        await eventually(lambda: all(self.rig.state(endpoint.name) == "live" for endpoint in self.fleet.endpoints))

    async def stop(self) -> None:
        """End everything."""
        await self._http.close()
        await self.rig.source.stop()
        await self.fleet.stop()

    @property
    def pod(self) -> Pod:
        """The one that goes wrong."""
        return self.fleet.pods[0]

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
        url = f"{self.fleet.endpoints[pod].url}{path}"
        async with self._http.request(method, url, **options) as answer:  # type: ignore[arg-type]  # passed through
            return answer.status, await answer.json()

    async def go_wrong(self, **faults: object) -> None:
        """From now on these go wrong at pod 0."""
        status, body = await self.call("POST", "/faults", json=faults)
        assert status == 200, body

    async def recover(self) -> None:
        """Nothing goes wrong any more."""
        await self.call("DELETE", "/faults")

    async def ask(self, prompt: Sequence[int], *, pod: int = 0, answer: int = 1) -> int:
        """One request; how many tokens of it were cached."""
        body = {"model": "tiny", "prompt": list(prompt), "max_tokens": answer, "ignore_eos": True}
        status, reply = await self.call("POST", "/v1/completions", pod, json=body)
        assert status == 200, reply
        said = self._model.writer.write(prompt, max_tokens=answer, ignore_eos=True).tokens
        self._computed.append([*prompt, *said[:-1]])
        cached: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]  # type: ignore[index]  # vLLM's shape
        return cached

    async def serve(self, count: int, pods: Sequence[int] = (0, 1)) -> None:
        """So many requests to each pod, one after another."""
        for _ in range(count):
            prompt, answer = self.traffic.prompt(), self.traffic.rng.choice((1, 1, 20))
            for pod in pods:
                await self.ask(prompt, pod=pod, answer=answer)

    async def both_heard(self) -> None:
        """Return when batches of both pods arrive. Those before are lost without a replay, so the caches are emptied, which the next batch tells."""

        async def arrive() -> bool:
            for pod in (0, 1):
                await self.ask(self.traffic.text(BLOCK_SIZE + 1), pod=pod)
            return bool(self.blocks_credited(0) and self.blocks_credited(1))

        await eventually(arrive)
        for pod in (0, 1):
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
        return self.blocks_credited(pod) == len(self.fleet.pods[pod].engine.pool.cached) and all(
            self.credited(pod, tokens) == self.held(pod, tokens) for tokens in self._computed
        )

    def credits_too_much(self, pod: int = 0) -> bool:
        """Whether a request would be sent here for blocks that are gone."""
        return any(self.credited(pod, tokens) > self.held(pod, tokens) for tokens in self._computed)

    async def becomes_right(self) -> None:
        """The index agrees with both engines, soon."""
        try:
            await eventually(lambda: self.is_right(0) and self.is_right(1))
        except TimeoutError:
            raise AssertionError(self._difference()) from None

    def _difference(self) -> str:
        lines = [f"{self.rig.notes.states}, gaps {len(self.rig.notes.gaps)}, errors {self.rig.notes.errors[:5]}"]
        for i, pod in enumerate(self.fleet.pods):
            pairs = [(self.credited(i, tokens), self.held(i, tokens)) for tokens in self._computed]
            lines.append(f"{pod.name}: {self.blocks_credited(i)} blocks credited, {len(pod.engine.pool.cached)} held; by prompt {pairs}")
        return "\n".join(lines)

    def blocks_credited(self, pod: int) -> int:
        """Blocks the pod is believed to have."""
        return self.rig.index.blocks(EndpointId(f"pod-{pod}"))

    def credited(self, pod: int, tokens: Sequence[int]) -> int:
        """Leading blocks the pod is believed to have."""
        return self.rig.hit_tokens(f"pod-{pod}", tokens) // BLOCK_SIZE

    def held(self, pod: int, tokens: Sequence[int]) -> int:
        """Leading blocks the engine has."""
        pool, digests = self.fleet.pods[pod].engine.pool, _digests(tokens)
        return len(pool.longest_hit(digests, len(digests)))

    def _endpoint(self, pod: int) -> Endpoint:
        at = self.fleet.endpoints[pod]
        labels = {names.KV_EVENTS_PORT_LABEL: str(at.events_port)}
        if self._replay:
            labels[names.KV_REPLAY_PORT_LABEL] = str(at.replay_port)
        return Endpoint(EndpointId(at.name), at.host, at.port, labels)


def _chat(text: str) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 30, "ignore_eos": True}


def _digests(tokens: Sequence[int]) -> list[bytes]:
    """vLLM's hashes of the full blocks."""
    hasher, digests = BlockHasher(), list[bytes]()
    for start in range(0, len(tokens) // BLOCK_SIZE * BLOCK_SIZE, BLOCK_SIZE):
        digests.append(hasher.digest(digests[-1] if digests else None, tokens[start : start + BLOCK_SIZE], None))
    return digests
