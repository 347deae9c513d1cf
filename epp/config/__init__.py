"""EndpointPickerConfig: strict decode with path, line and "did you mean"; defaults; the effective configuration.

`load` turns text into an EffectiveConfig, `build` that into a scheduler, `show` prints it. Command-line flags: flags.py.
"""

from epp.config.building import Built, build
from epp.config.effective import EffectiveConfig
from epp.config.loading import load, load_file
from epp.config.showing import show

__all__ = ["Built", "EffectiveConfig", "build", "load", "load_file", "show"]
