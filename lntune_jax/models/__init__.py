"""Models whose module paths are Hugging Face's own, loaded without PyTorch.

A checkpoint becomes a plain tree of weights and a pure function, ready for `partition_params`
and for any JAX training loop.
"""

from .decoding.cache import empty_cache as empty_cache
from .decoding.generate import Generated as Generated
from .decoding.generate import generate as generate
from .decoding.generate import stream as stream
from .estimating.memory import MemoryEstimate as MemoryEstimate
from .estimating.memory import estimate_memory as estimate_memory
from .families.registry import base_specs as base_specs
from .families.registry import model_specs as model_specs
from .loading.gguf_tokenizer import tokenizer_from_gguf as tokenizer_from_gguf
from .loss import causal_lm_loss as causal_lm_loss
from .merging.merge import MergedCheckpoint as MergedCheckpoint
from .merging.merge import merge_checkpoint as merge_checkpoint
from .model import PretrainedModel as PretrainedModel
from .model import from_config as from_config
from .model import from_pretrained as from_pretrained
from .nn.layers import mean_pool as mean_pool
from .planning.plan import plan as plan
from .planning.report import Plan as Plan
from .types import Cache as Cache
from .types import GivenOptions as GivenOptions
from .types import ModelOutput as ModelOutput
from .types import Options as Options
