"""The scheduler: one synchronous step from candidates to a decision that already counts (spec/plugins.md 10.1).

Order: producers, then the profile handler's loop over profiles, then the decision, then the PreRequest hooks. There is
no await in between, so the next request sees the load and the speculated blocks of this one (architecture decision 4).

Owns no state of its own; the plugins do. Called by the director, on the event loop. A failing producer or hook is told
to the reporter and the request goes on without it; what a failing filter, scorer or picker does, see profile.py.
"""

from collections.abc import Iterable, Mapping, Sequence

from epp.domain import Decision, DecisionId, EndpointId, ProfileResult, RequestEnd
from epp.errors import InternalError, PreconditionFailedError, RequestError, ResourceExhaustedError
from epp.reporter import Reporter
from epp.scheduling.interfaces import Cycle, EndObserver, EndpointObserver, PrefillObserver, PreRequest, Producer, ProfileHandler
from epp.scheduling.profile import Profile

# More rounds than any handler needs; one that never says it is done must not stop the loop of the whole process.
MAX_ROUNDS = 32


class Scheduler:
    """Chooses endpoints by the plugins it was built of."""

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        handler: ProfileHandler,
        producers: Sequence[Producer],
        plugins: Iterable[object],
        reporter: Reporter,
    ) -> None:
        """`producers` in the order they run in, each after those it reads from.

        `plugins` are all instances, each once: those that are PreRequest, PrefillObserver, EndObserver or EndpointObserver act on every request,
        whether a profile names them or not.
        """
        self._profiles = dict(profiles)
        self._names = tuple(profiles)
        self._handler = handler
        self._producers = tuple(producers)
        plugins = tuple(plugins)
        self._pre_requests = tuple(plugin for plugin in plugins if isinstance(plugin, PreRequest))
        self._prefill_observers = tuple(plugin for plugin in plugins if isinstance(plugin, PrefillObserver))
        self._end_observers = tuple(plugin for plugin in plugins if isinstance(plugin, EndObserver))
        self._endpoint_observers = tuple(plugin for plugin in plugins if isinstance(plugin, EndpointObserver))
        self._reporter = reporter

    def schedule(self, cycle: Cycle, *, decision_id: DecisionId, request_id: str, only_if_cached: bool = False) -> Decision:
        """Choose for one request, and count it against the choice before returning.

        Raises RequestError: ResourceExhaustedError where a profile has no candidate left or no profile ran; PreconditionFailedError
        where the request is to be served `only_if_cached` and the choice is not known to hold any of its prefix.
        """
        for producer in self._producers:
            try:
                producer.produce(cycle)
            except Exception as error:  # noqa: BLE001  # a plugin is foreign code: whatever it raises, the request goes on
                self._reporter.plugin_failed(producer.name, error)
        primary, results = self._choose(cycle, request_id)
        decision = Decision(
            decision_id,
            request_id,
            primary,
            {name: result for name, result in results.items() if result is not None},
            cycle.request,
            cycle.tokens,
            cycle.prefix_matches(),
            cycle.endpoints,
            cycle.now,
        )
        if only_if_cached and not _holds_prefix(decision, cycle.position[decision.endpoint.id]):
            raise PreconditionFailedError("no decode worker has the requested KV cache")
        for plugin in self._pre_requests:
            try:
                plugin.decided(cycle, decision)
            except Exception as error:  # noqa: BLE001  # as above
                self._reporter.plugin_failed(plugin.name, error)
        return decision

    def _choose(self, cycle: Cycle, request_id: str) -> tuple[ProfileResult, dict[str, ProfileResult | None]]:
        """The primary result and all of them. Profiles turn what their plugins raise into RequestErrors, so anything else is the handler's."""
        try:
            results, failed = self._run_profiles(cycle, request_id)
            name = self._handler.primary(cycle, results)
            primary = results[name]
        except RequestError:
            raise
        except Exception as error:
            self._reporter.plugin_failed(self._handler.name, error)
            raise InternalError(f"profile handler {self._handler.name!r} failed") from error
        if primary is None:
            raise failed[name]
        return primary, results

    def _run_profiles(self, cycle: Cycle, request_id: str) -> tuple[dict[str, ProfileResult | None], dict[str, RequestError]]:
        """The handler's loop: results by profile, None where it failed, and the errors of those; never empty."""
        results: dict[str, ProfileResult | None] = {}
        failed: dict[str, RequestError] = {}
        for _ in range(MAX_ROUNDS):
            names = self._handler.pick_profiles(cycle, self._names, results)
            if not names:
                if not results:
                    raise ResourceExhaustedError(f"failed to run any scheduler profile for request {request_id}")
                return results, failed
            for name in names:
                try:
                    results[name] = self._profiles[name].run(cycle)
                    failed.pop(name, None)
                except RequestError as error:
                    results[name] = None
                    failed[name] = error
        raise RuntimeError(f"it did not end after {MAX_ROUNDS} rounds")

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        """An answer ended: every EndObserver gives back what it took. At most once per decision."""
        for plugin in self._end_observers:
            try:
                plugin.ended(decision, end)
            except Exception as error:  # noqa: BLE001  # one plugin's failure must not keep the others from giving back
                self._reporter.plugin_failed(plugin.name, error)

    def prefill_ended(self, decision_id: DecisionId, endpoint: EndpointId, now: float) -> None:
        """An endpoint has computed a prompt: every PrefillObserver learns of it."""
        for plugin in self._prefill_observers:
            try:
                plugin.prefill_ended(decision_id, endpoint, now)
            except Exception as error:  # noqa: BLE001  # as above
                self._reporter.plugin_failed(plugin.name, error)

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        """An endpoint left the pool: every EndpointObserver forgets it."""
        for plugin in self._endpoint_observers:
            try:
                plugin.endpoint_removed(endpoint)
            except Exception as error:  # noqa: BLE001  # as above
                self._reporter.plugin_failed(plugin.name, error)


def _holds_prefix(decision: Decision, position: int) -> bool:
    """Whether any producer knows the endpoint at this place among the candidates to hold a block of the prompt."""
    return any(match.matched_tokens[position] > 0 for match in decision.prefix.values())
