"""What an engine counts by itself, from its /metrics page. Pure.

vLLM looks a request up in its prefix cache once, when it first schedules it: that adds the prompt's tokens to
`prefix_cache_queries` and the tokens found to `prefix_cache_hits`; a request it preempted is counted no second time.
Read with prometheus_client's parser, not with the picker's own: this is the witness.
"""

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


class PageError(ValueError):
    """The page lacks a counter; `str()` names it."""


@dataclass(frozen=True, slots=True)
class Counters:
    """One engine's counters: since its start, or, as a difference, since an earlier look."""

    requests: int
    """Requests that ended, however they ended."""
    prompt_tokens: int
    """Tokens looked up in the prefix cache."""
    hit_tokens: int
    """Of these, those found."""

    def since(self, before: "Counters") -> "Counters":
        """The growth since an earlier look."""
        return Counters(self.requests - before.requests, self.prompt_tokens - before.prompt_tokens, self.hit_tokens - before.hit_tokens)


def parse(page: str) -> Counters:
    """The counters of a page, summed over ranks. Raises PageError where one is missing."""
    wanted = {"vllm:request_success_total": 0.0, "vllm:prefix_cache_queries_total": 0.0, "vllm:prefix_cache_hits_total": 0.0}
    found: set[str] = set()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in wanted:
                wanted[sample.name] += sample.value
                found.add(sample.name)
    if missing := sorted(wanted.keys() - found):
        raise PageError(f"no {missing[0]}")
    requests, prompt_tokens, hit_tokens = (int(value) for value in wanted.values())
    return Counters(requests, prompt_tokens, hit_tokens)
