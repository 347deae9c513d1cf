"""Shell: requests to token ids, exactly as vLLM makes them, or an honest "there are none".

`Tokenizations` is what the director asks, one `Tokenization` a model; LocalTokenizer, RenderBackend and EstimateBackend are where its answers come from.
transformers is imported by one module only, prove.py, which runs in a child process at load.
"""

from epp.tokenization.absent import NoTokensError, Reason, TokenizerError
from epp.tokenization.estimate import EstimateBackend
from epp.tokenization.local import LocalTokenizer, LocalTokenizerConfig
from epp.tokenization.render import RenderBackend
from epp.tokenization.several import Tokenizations
from epp.tokenization.tokenization import Tokenization
from epp.tokenization.vocabularies import PACKAGES, materialise

__all__ = [
    "PACKAGES",
    "EstimateBackend",
    "LocalTokenizer",
    "LocalTokenizerConfig",
    "NoTokensError",
    "Reason",
    "RenderBackend",
    "Tokenization",
    "Tokenizations",
    "TokenizerError",
    "materialise",
]
