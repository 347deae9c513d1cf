"""Settings of every suite."""

import os

from hypothesis import HealthCheck, settings

# Time is no verdict here: a busy machine must not fail a test. CI plays the same examples each time; a person finds new ones.
settings.register_profile("epp", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ)
settings.load_profile("epp")
