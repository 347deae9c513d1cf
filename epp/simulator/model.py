"""The model that all pods of a fleet serve: its names, its tokenizer (in one thread), and what it is going to say.

Shared by the pods' APIs on one event loop. Tokenizing a long prompt takes milliseconds, so it happens in the fleet's
one tokenizer thread (the tokenizer is not thread-safe); everything else here is fast and on the loop.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from epp.simulator.answers import AnswerWriter
from epp.simulator.bodies import Ask, Prompt
from epp.simulator.conversations import Conversation
from epp.simulator.engine import Lora, Request
from epp.simulator.errors import ApiError, ModelNotFoundError
from epp.simulator.faults import WrongTokens
from epp.simulator.tokenizing import Tokenizer


@dataclass(slots=True)
class PlannedAnswer:
    """A request ready for an engine, and how its answer will end."""

    request: Request
    finish_reason: str


@dataclass(slots=True)
class ServedModel:
    """One base model and its adapters."""

    name: str
    loras: Mapping[str, Lora]
    max_model_len: int
    """Tokens of prompt and answer together."""
    tokenizer: Tokenizer
    writer: AnswerWriter
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "tokenizer"))

    async def plan(self, ask: Ask, id_: str, wrong: WrongTokens) -> list[PlannedAnswer]:
        """Tokenize each prompt, as wrongly as wanted, and decide its answer. Raises ApiError where vLLM answers 4xx."""
        if ask.model != self.name and ask.model not in self.loras:
            raise ModelNotFoundError(f"The model `{ask.model}` does not exist.", param="model")
        prompts = await asyncio.get_running_loop().run_in_executor(self.thread, self._tokenize, ask, wrong)
        return [self._plan_one(ask, prompt, f"{id_}-{index}", wrong) for index, prompt in enumerate(prompts)]

    def close(self) -> None:
        """End the tokenizer thread."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    def _tokenize(self, ask: Ask, wrong: WrongTokens) -> list[list[int]]:
        prompts = [[*wrong.prepend, *self._tokens(ask, prompt, wrong.template)[wrong.skip :]] for prompt in ask.prompts]
        return [ask.truncated(prompt, self.max_model_len) for prompt in prompts]

    def _tokens(self, ask: Ask, prompt: Prompt, template: str | None) -> list[int]:
        if isinstance(prompt, Conversation):
            return self.tokenizer.chat(prompt, template)
        if isinstance(prompt, str):
            return self.tokenizer.text(prompt, add_special_tokens=ask.add_special_tokens)
        if not all(0 <= token < self.tokenizer.size for token in prompt):
            raise ApiError(f"a token id of the prompt is not in the vocabulary of {self.tokenizer.size}", param="prompt")
        return prompt

    def _plan_one(self, ask: Ask, prompt: list[int], id_: str, wrong: WrongTokens) -> PlannedAnswer:
        room = self.max_model_len - len(prompt)
        max_tokens = room if ask.max_tokens is None else ask.max_tokens
        if not prompt:
            raise ApiError("the prompt has no tokens", param="prompt")
        if room < 1 or max_tokens > room:
            raise ApiError(
                f"This model's maximum context length is {self.max_model_len} tokens, but the prompt has {len(prompt)}"
                + (f" and {ask.max_tokens} are asked for." if ask.max_tokens else ".")
            )
        answer = self.writer.write(prompt, max_tokens=max_tokens, ignore_eos=ask.ignore_eos, seed=ask.seed)
        lora = self.loras.get(ask.model) if wrong.lora_name is None else Lora(1, wrong.lora_name, f"/adapters/{wrong.lora_name}")
        request = Request(id_, prompt, answer.tokens, lora, wrong.cache_salt or ask.cache_salt, ask.reports_hit)
        return PlannedAnswer(request, answer.finish_reason)
