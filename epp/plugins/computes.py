"""Which endpoints of a decision compute the prompt, and so hold its blocks afterwards."""

from epp.domain import Decision, EndpointId

# The profile whose endpoint prefills where prefill is disaggregated; llm-d fixes the name (spec/plugins.md 18.6).
PREFILL_PROFILE = "prefill"


def computing(decision: Decision) -> tuple[EndpointId, ...]:
    """The primary endpoint, and that of the profile named "prefill" if there is one."""
    primary = decision.endpoint.id
    prefill = decision.profiles.get(PREFILL_PROFILE)
    if prefill is None or prefill is decision.primary:
        return (primary,)
    return (primary, prefill.chosen[0].id)
