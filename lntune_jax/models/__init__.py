"""Models whose module paths are Hugging Face's own, loaded without PyTorch.

A checkpoint becomes a plain tree of weights and a pure function, ready for `partition_params`
and for any JAX training loop.
"""

from ._base_specs import base_specs as base_specs
from ._cache import Cache as Cache
from ._cache import empty_cache as empty_cache
from ._generation import Generated as Generated
from ._generation import generate as generate
from ._generation import stream as stream
from ._gguf_tokenizer import tokenizer_from_gguf as tokenizer_from_gguf
from ._loss import causal_lm_loss as causal_lm_loss
from ._memory import MemoryEstimate as MemoryEstimate
from ._memory import estimate_memory as estimate_memory
from ._merging import MergedCheckpoint as MergedCheckpoint
from ._merging import merge_checkpoint as merge_checkpoint
from ._outputs import ModelOutput as ModelOutput
from ._outputs import mean_pool as mean_pool
from ._pretrained import PretrainedModel as PretrainedModel
from ._pretrained import from_config as from_config
from ._pretrained import from_pretrained as from_pretrained
