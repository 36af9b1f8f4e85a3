"""A language model for the command line: weights, adapter, tokenizer and where it stops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.chats import render_chat
from ..data.encode import load_tokenizer
from ..data.tokens import prompt_tokens
from ..errors import ConfigError, LNTuningError, ModelError
from ..tasks.loading import check_model_directory
from .described import base_of


@dataclass(frozen=True)
class LanguageModel:
    """What is needed to continue texts.

    Attributes:
        model: From `lntune_jax.models`.
        params: Its weights, the adapter in place.
        tokenizer: Its tokenizer.
        stops: Ids that end a text.
        is_for_chats: Whether the adapter says that it was trained on chats.
    """

    model: Any
    params: Any
    tokenizer: Any
    stops: tuple[int, ...]
    is_for_chats: bool = False

    def prompt_tokens(self, text: str, chat: bool) -> list[int]:
        """The tokens of a text, or of the message of a user that awaits an answer.

        Raises:
            ConfigError: If there is no chat template, or none that can be used.
        """
        if not chat:
            return prompt_tokens(self.tokenizer, [text])[0]
        if not self.tokenizer.chat_template:
            raise ConfigError("--chat: the model's tokenizer has no chat template; leave it out")
        message = [{"role": "user", "content": text}]
        try:
            rendered = render_chat(self.tokenizer, message, asks=True)
        except LNTuningError as error:
            raise ConfigError(f"--chat: the model's chat template fails ({error})") from error
        # The template writes special tokens itself.
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def load_language_model(
    name: str | None,
    adapter: Path | None,
    dtype: str,
    quantize: str | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Load a model and put an adapter in place.

    Args:
        name: Directory, GGUF file or hub id; `None` for the one that the adapter names.
        adapter: Directory of an adapter, ours or PEFT's, or `None`.
        dtype: Number format of the weights.
        quantize: What the kernels of the layers are kept as; `None` for what the adapter was
            trained over.
        revision: A branch, tag or commit of the model on the hub; `None` for what the adapter
            names, where it names the model too.

    Raises:
        LNTuningError: If one of them is missing, damaged, or does not fit.
    """
    if name is None and adapter is None:
        raise ConfigError("give --model, or --run or --adapter with an adapter that names its base")
    import lntune_jax as lnt

    from .. import models
    from ..models.loading import find_directory
    from ..models.merging import find_adapter, read_quantization
    from ..peft.files import OURS

    found = None if adapter is None else find_adapter(adapter)
    if found is not None:
        name, revision = base_of(found.directory, name, revision)
    assert name is not None
    _check_name(name, revision)
    path = find_directory(name, revision)
    is_gguf = path.is_file()
    tokenizer = models.tokenizer_from_gguf(path) if is_gguf else load_tokenizer(str(path))
    if quantize is None and found is not None:
        quantize = read_quantization(found)
    model = models.from_pretrained(path, task="CAUSAL_LM", dtype=dtype, quantize=quantize)
    params = model.params
    if found is not None:
        put = lnt.restore_adapter if found.kind == OURS else lnt.import_peft
        params = put(found.directory, params)
    stops = stop_tokens(model, tokenizer)
    is_for_chats = found is not None and (found.task or {}).get("form") == "messages"
    return LanguageModel(model, params, tokenizer, stops, is_for_chats)


def _check_name(name: str, revision: str | None) -> None:
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"--model {name} is not a file")
    elif not (path.is_dir() and any(path.glob("*.gguf"))):
        check_model_directory(name, revision)


def stop_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The model's own, and the tokenizer's end of text."""
    end = tokenizer.eos_token_id
    ids = {*model.stop_tokens, *([end] if isinstance(end, int) else [])}
    return tuple(sorted(token for token in ids if 0 <= token < model.config.vocab_size))
