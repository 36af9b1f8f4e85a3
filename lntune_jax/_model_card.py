"""What an adapter directory holds, and the model card that says so on the Hugging Face hub."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .adapters.fingerprint import QUANTIZED, count_frozen
from .adapters.reading import read_directory
from .config import CONFIG_FILE, LNTuningConfig
from .errors import AdapterError
from .peft.files import WEIGHTS_FILE, read_header, read_key
from .selection.labels import NORM, label_kinds
from .storage.checksums import METADATA_FILE, list_files

CARD_FILE = "README.md"
OURS, PEFT = "lntune_jax", "peft"
_ARRAYS = "arrays/"
_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class AdapterFacts(NamedTuple):
    """What a directory holds: its format, files and config, and how many numbers of which kind.

    `total` counts the base too, and is None where the files do not tell.
    """

    kind: str
    files: tuple[str, ...]
    config: LNTuningConfig
    norms: int
    saved: int
    total: int | None
    quantized: str | None


def read_facts(directory: Path) -> AdapterFacts:
    """Reads a directory of `save_adapter` or of PEFT, verifying it.

    Raises:
        AdapterError: it is neither, both, or damaged.
    """
    kinds = [
        kind
        for kind, file in ((OURS, METADATA_FILE), (PEFT, WEIGHTS_FILE))
        if (directory / file).is_file()
    ]
    if len(kinds) != 1:
        found = "both" if kinds else "neither"
        raise AdapterError(
            f"{directory} holds {found} of {METADATA_FILE} (save_adapter) and {WEIGHTS_FILE} "
            "(export_peft, PEFT): pass a directory with one adapter"
        )
    files = tuple(filter(is_own_file, list_files(directory)))
    if kinds == [OURS]:
        adapter, metadata = read_directory(directory)
        labels = label_kinds(adapter.trainable, adapter.config)
        sizes = {path: leaf.size for path, leaf in adapter.trainable.items()}
        norms = sum(size for path, size in sizes.items() if labels[path] == NORM)
        frozen, every = count_frozen(metadata.base), sum(sizes.values())
        total = None if frozen is None else frozen + every
        quantized = metadata.base.get(QUANTIZED)
        return AdapterFacts(OURS, files, adapter.config, norms, every - norms, total, quantized)
    shapes, config = read_header(directory)
    counts = {key: math.prod(shape) for key, shape in shapes.items()}
    norms = sum(size for key, size in counts.items() if read_key(key).copied is not None)
    return AdapterFacts(PEFT, files, config, norms, sum(counts.values()) - norms, None, None)


def is_own_file(path: str) -> bool:
    """Whether a file of a directory or repository is an adapter's, of either format."""
    return path in (CONFIG_FILE, METADATA_FILE, WEIGHTS_FILE) or path.startswith(_ARRAYS)


def write_card(facts: AdapterFacts, repo_id: str) -> str:
    """The text of the card: YAML that the hub reads, then what a person wants to know.

    Example:
        >>> config = LNTuningConfig(base_model_name_or_path="org/base", task_type="SEQ_CLS")
        >>> card = write_card(AdapterFacts(OURS, (), config, 9984, 770, 22713986, None), "me/tuned")
        >>> print(card.partition("# ")[0])
        ---
        library_name: "lntune_jax"
        base_model: "org/base"
        base_model_relation: "adapter"
        pipeline_tag: "text-classification"
        tags:
        - "layernorm-tuning"
        - "lntune_jax"
        - "jax"
        ---
        <BLANKLINE>
        <BLANKLINE>
    """
    base = _find_hub_id(facts.config)
    fields = {"library_name": facts.kind}
    if base is not None:
        fields |= {"base_model": base, "base_model_relation": "adapter"}
    if facts.config.task_type in _PIPELINES:
        fields["pipeline_tag"] = _PIPELINES[facts.config.task_type]
    # A JSON string is a YAML string, whatever a downloaded config says.
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    tags = ["layernorm-tuning", OURS, "jax" if facts.kind == OURS else PEFT]
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    rows = "\n".join(f"| {name} | {value} |" for name, value in _list_rows(facts))
    return (
        "---\n" + "\n".join(lines) + f"\n---\n\n# {repo_id.rpartition('/')[2]}\n\n"
        "LayerNorm tuning: the scales and biases of the base's norms"
        + (", and the modules named below," if facts.saved else "")
        + " were trained, all else is the base's own. The base is not in this repository.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n## How to load\n\n{_explain_loading(facts, repo_id)}"
    )


def _list_rows(facts: AdapterFacts) -> list[tuple[str, str]]:
    config, trained = facts.config, facts.norms + facts.saved
    share = (
        f"{trained:,} of {facts.total:,} ({100 * trained / facts.total:.4f} %)"
        if facts.total
        else f"{trained:,}"
    )
    rows = [("base", _code(_find_hub_id(config)) or "a local model")]
    rows.append(("parameters trained", share))
    rows.append(("of these in norms", f"{facts.norms:,}"))
    if facts.saved:
        rows.append(("in saved modules", f"{facts.saved:,}: {_code(config.modules_to_save)}"))
    default = f"the defaults of `{config.model_type}`" if config.model_type else "every norm"
    own = _code(config.target_modules) if config.target_modules else "no norm"
    rows.append(("targets", default if config.target_modules is None else own))
    if config.exclude_modules:
        rows.append(("excluded", _code(config.exclude_modules)))
    if facts.quantized:
        rows.append(("trained over kernels in", facts.quantized))
    return rows


def _find_hub_id(config: LNTuningConfig) -> str | None:
    """The base's id; a local path is nobody else's business, and the hub refuses it."""
    base = config.base_model_name_or_path
    return base if base and _HUB_ID.fullmatch(base) and not Path(base).exists() else None


def _code(value: str | Sequence[str] | None) -> str:
    values = [value] if isinstance(value, str) else value or ()
    plain = (re.sub(r"[`|\r\n]", " ", text) for text in values)
    return ", ".join(f"`{text}`" for text in plain) or "not recorded"


def _explain_loading(facts: AdapterFacts, repo_id: str) -> str:
    text = (
        "With [lntune_jax](https://pypi.org/project/lntune-jax/), `params` being the base's tree:\n"
        "\n```python\nimport lntune_jax as lnt\n\n"
        f'params = lnt.hub.from_pretrained("{repo_id}", params)\n```\n'
    )
    if facts.kind == OURS:
        return text
    return text + (
        "\nWith [PEFT](https://github.com/huggingface/peft), `model` being the base:\n"
        "\n```python\nfrom peft import PeftModel\n\n"
        f'model = PeftModel.from_pretrained(model, "{repo_id}")\n```\n'
    )
