"""Adapters on the Hugging Face hub: pushed with a model card, and put into a base by their id.

Needs `huggingface_hub` (the extra `hf`), which is imported where it is used. Directories of
`save_adapter` and of PEFT both go up and come down.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .adapters.fingerprint import QUANTIZED, count_frozen
from .adapters.store import read_directory, restore_adapter
from .config import CONFIG_FILE, LNTuningConfig
from .errors import AdapterError
from .messages import need_package, shorten, warn
from .names.rules import NameMap
from .peft.files import OURS, PEFT, WEIGHTS_FILE, find_kind, read_key, read_peft_directory
from .peft.load import import_peft
from .selection.labels import NORM, label_kinds
from .storage.directories import resolve_path
from .storage.leaves import ARRAYS_DIRECTORY
from .storage.processes import spans_processes, together
from .storage.sealed import METADATA_FILE, list_files

__all__ = ["fetch_adapter", "from_pretrained", "make_card", "push_adapter"]

CARD_FILE = "README.md"
_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_PATTERNS = [CONFIG_FILE, METADATA_FILE, WEIGHTS_FILE, f"{ARRAYS_DIRECTORY}/*"]
_SHOWN_OF_TASK, _MOST_LABELS = ("labels", "pooling", "max_length"), 20
_SIGNATURE = "<!-- written by lntune_jax, sha256 "
# An id on the hub: a name, or an owner and a name; paths begin with a dot or have more parts.
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def push_adapter(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
    card: bool = True,
) -> str:
    """Uploads an adapter directory with a model card, in one commit.

    The repository is made if there is none. The directory is read and verified first, and is not
    changed. Files of an adapter that was there before go in the same commit; other files of the
    repository stay.

    Args:
        directory: what `save_adapter`, `export_peft` or PEFT wrote.
        repo_id: "owner/name", or "name" for the token's own account.
        private: whether a repository that is made is private; None is the account's default.
        revision: the branch to push to, made if needed; None is the main one.
        token: an access token; None is the one that `hf auth login` stored or `HF_TOKEN`.
        message: of the commit.
        card: whether a README.md goes up: the directory's own if there is one, else what
            `make_card` gives, unless a person wrote the one that is there.

    Returns:
        The commit's hash: as `revision` of `from_pretrained` it gives exactly this adapter.

    Raises:
        AdapterError: the directory is no sound adapter, `repo_id` is no id, `huggingface_hub` is
            not installed, or the hub cannot be reached or refuses.

    Warns:
        UserWarning: the config names the base by a path of this machine, which goes up with it; or
            the repository has a README.md that a person wrote or edited, which stays, or, where
            the directory has its own, is replaced.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.hub.push_adapter("no-such-directory", "me/adapter")
        ... except lnt.errors.AdapterError as error:
        ...     print(str(error).partition(" /")[0])
        there is no adapter directory
    """
    path = resolve_path(directory, error=AdapterError)
    facts = _read_facts(path)
    check_id(repo_id)
    _warn_of_path(facts.config)
    hub = _import_hub()
    try:
        api = hub.HfApi(token=token, library_name=OURS)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = api.repo_info(repo_id, revision=revision).sha
        text = _choose_card(api, repo_id, head, path, facts) if card else None
        with tempfile.TemporaryDirectory() as folder:
            _copy_adapter(path, Path(folder), text)
            _read_facts(Path(folder))  # what goes up is whole, whoever wrote there meanwhile
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                delete_patterns=_PATTERNS,  # what an adapter that was there leaves behind
                parent_commit=head,  # or another push in between would mix two adapters
                commit_message=message or "LayerNorm tuning adapter",
                revision=revision,
            )
    except Exception as error:  # no network, no rights, no such branch: of more types than one
        raise AdapterError(
            f"cannot push {path} to {repo_id!r} on the hub ({_explain(error)}). No file there has "
            "changed; check the token, the id and the network (and HF_HUB_OFFLINE)"
        ) from error
    return done.oid


def make_card(directory: str | os.PathLike[str], repo_id: str) -> str:
    """Writes the model card of an adapter, as `push_adapter` sends it up.

    To edit it, write the text to a README.md in the directory: that goes up instead.

    Args:
        directory: what `save_adapter`, `export_peft` or PEFT wrote.
        repo_id: "owner/name", where the adapter will be.

    Returns:
        Markdown, after the fields that the hub reads: base, task, tags.

    Raises:
        AdapterError: the directory is no sound adapter, `repo_id` is no id, or `huggingface_hub`
            is not installed.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(2)}}
        >>> config = lnt.LNTuningConfig(base_model_name_or_path="org/base", task_type="SEQ_CLS")
        >>> tuned = {"ln_1.scale": jnp.array([2.0, 3.0])}
        >>> path = lnt.save_adapter(tempfile.mkdtemp() + "/adapter", tuned, config, base=params)
        >>> print(lnt.hub.make_card(path, "me/tuned").partition("# ")[0])
        ---
        base_model: org/base
        library_name: lntune_jax
        pipeline_tag: text-classification
        tags:
        - layernorm-tuning
        - lntune_jax
        - jax
        base_model_relation: adapter
        ---
        <BLANKLINE>
        <BLANKLINE>
    """
    path = resolve_path(directory, error=AdapterError)
    check_id(repo_id)
    return _write_card(_read_facts(path), repo_id)


def fetch_adapter(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Downloads an adapter's files, and nothing else of its repository, into the hub's cache.

    Offline (`HF_HUB_OFFLINE=1`, or no network) a copy in the cache is used.

    Args:
        repo_id: "owner/name".
        revision: a branch, tag or commit; None is the main branch.
        token: an access token, for private repositories.

    Returns:
        The directory in the cache, for `restore_adapter`, `load_adapter` or `import_peft`. It
        holds links into the cache: do not write there.

    Raises:
        AdapterError: there is no such repository or revision, it holds no adapter, or it cannot
            be reached and is not in the cache.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.hub.fetch_adapter("../adapter")
        ... except lnt.errors.AdapterError as error:
        ...     print(error)
        '../adapter' is no id on the hub: expected 'owner/name'
    """
    check_id(repo_id)
    hub = _import_hub()
    try:
        found = Path(
            hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=_PATTERNS)
        )
    except Exception as error:
        wanted = f"{repo_id!r}" if revision is None else f"{repo_id!r} at {revision!r}"
        offline = " HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else " Check the network"
        raise AdapterError(
            f"the adapter {wanted} is neither on the hub nor in the cache ({_explain(error)})."
            f"{offline}; a private repository needs a token"
        ) from error
    if not any((found / file).is_file() for file in (METADATA_FILE, WEIGHTS_FILE)):
        raise AdapterError(
            f"the repository {repo_id!r} holds no adapter: neither {METADATA_FILE} (save_adapter) "
            f"nor {WEIGHTS_FILE} (PEFT). Is it that of the base?"
        )
    return found


def from_pretrained(
    name: str | os.PathLike[str],
    params: Any,
    *,
    revision: str | None = None,
    token: str | None = None,
    cast: bool = True,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> Any:
    """Puts an adapter of the hub, or of a directory, into the base it was trained on.

    The format is seen from the files: `save_adapter`'s are read by `restore_adapter`, PEFT's by
    `import_peft`, each as strictly as ever.

    Args:
        name: an id on the hub, or a directory, which goes first.
        params: the base: any pytree.
        revision: a branch, tag or commit; None is the main branch. A directory has none.
        token: an access token, for private repositories.
        cast: whether the leaves take the dtype of the base.
        norms: for PEFT's files: module paths that are norms. `save_adapter` wrote down its own.
        name_map: as in `restore_adapter` and `import_peft`.

    Returns:
        A tree like `params`, with the adapter in place.

    Raises:
        AdapterError: as for `fetch_adapter`, `restore_adapter` and `import_peft`; or a revision
            of a directory.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(2)}}
        >>> tuned, config = {"ln_1.scale": jnp.array([2.0, 3.0])}, lnt.LNTuningConfig()
        >>> path = lnt.save_adapter(tempfile.mkdtemp() + "/adapter", tuned, config, base=params)
        >>> lnt.hub.from_pretrained(path, params)["ln_1"]["scale"].tolist()
        [2.0, 3.0]
    """
    with together(spans_processes(params)):
        directory = resolve_path(name, error=AdapterError)
        if not directory.is_dir():
            if not _ID.fullmatch(str(name)):
                raise AdapterError(f"{str(name)!r} is neither a directory nor an id on the hub")
            directory = fetch_adapter(str(name), revision=revision, token=token)
        elif revision is not None:
            raise AdapterError(
                f"{directory} is a directory, which has no revision {revision!r}: leave revision "
                "out, or pass an id that is no directory here"
            )
        is_peft = find_kind(directory) == PEFT
    if is_peft:
        return import_peft(directory, params, norms=norms, name_map=name_map, cast=cast)
    return restore_adapter(directory, params, cast=cast, name_map=name_map)


def check_id(repo_id: str) -> None:
    """Refuse what is no id on the hub.

    Raises:
        AdapterError: It is not "owner/name", or "name".

    Example:
        >>> check_id("me/adapter")
    """
    if not isinstance(repo_id, str) or not _ID.fullmatch(repo_id):
        raise AdapterError(f"{str(repo_id)!r} is no id on the hub: expected 'owner/name'")


def _import_hub() -> Any:
    need_package("huggingface_hub", "hf", "an adapter on the hub", AdapterError)
    import huggingface_hub

    return huggingface_hub


def _explain(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


class _Facts(NamedTuple):
    """What a directory holds: its format and config, and how many numbers of which kind.

    `total` counts the base too, and is None where the files do not tell. `task` is what the adapter
    says of itself.
    """

    kind: str
    config: LNTuningConfig
    norms: int
    saved: int
    total: int | None
    quantized: str | None
    task: Mapping[str, Any]


def _read_facts(directory: Path) -> _Facts:
    """Reads a directory of either format, verifying it."""
    if find_kind(directory) == OURS:
        adapter, metadata = read_directory(directory)
        labels = label_kinds(adapter.trainable, adapter.config)
        sizes = {path: leaf.size for path, leaf in adapter.trainable.items()}
        norms = sum(size for path, size in sizes.items() if labels[path] == NORM)
        frozen, every = count_frozen(metadata.base), sum(sizes.values())
        total = None if frozen is None else frozen + every
        quantized = metadata.base.get(QUANTIZED)
        return _Facts(
            OURS, adapter.config, norms, every - norms, total, quantized, adapter.task or {}
        )
    tensors, config = read_peft_directory(directory)
    norms = sum(x.size for key, x in tensors.items() if read_key(key).copied is not None)
    saved = sum(x.size for x in tensors.values()) - norms
    return _Facts(PEFT, config, norms, saved, None, None, {})


def _is_own(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in _PATTERNS)


def _copy_adapter(source: Path, target: Path, card: str | None) -> None:
    """Copies the files of an adapter, and nothing else of its directory, beside a card."""
    for file in filter(_is_own, list_files(source)):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    if card is not None:
        (target / CARD_FILE).write_text(card, encoding="utf-8")


def _choose_card(api: Any, repo_id: str, head: str, directory: Path, facts: _Facts) -> str | None:
    """The card that goes up, or None where that of the repository stays."""
    own = directory / CARD_FILE
    text = own.read_text(encoding="utf-8") if own.is_file() else _write_card(facts, repo_id)
    if not api.file_exists(repo_id, CARD_FILE, revision=head):
        return text
    file = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=head))
    there = file.read_text(encoding="utf-8")
    if there in (text, _sign(_unsign(there))):
        return text
    if own.is_file():
        warn(
            f"the {CARD_FILE} of {repo_id!r}, which a person wrote or edited, is replaced by that "
            f"of {directory}; the commit {head} has it still",
            UserWarning,
        )
        return text
    warn(
        f"the {CARD_FILE} of {repo_id!r} stays as a person wrote or edited it, and may not fit "
        f"this adapter: edit it there, or write what make_card gives to {directory / CARD_FILE}",
        UserWarning,
    )
    return None


def _write_card(facts: _Facts, repo_id: str) -> str:
    base = _find_hub_id(facts.config)
    fields = _import_hub().ModelCardData(
        library_name=OURS if facts.kind == OURS else "peft",
        base_model=base,
        base_model_relation=base and "adapter",
        pipeline_tag=_PIPELINES.get(facts.config.task_type or ""),
        tags=["layernorm-tuning", OURS, "jax" if facts.kind == OURS else "peft"],
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in _list_rows(facts))
    return _sign(
        f"---\n{fields.to_yaml()}\n---\n\n# {repo_id.rpartition('/')[2]}\n\n"
        "LayerNorm tuning: the scales and biases of the base's norms"
        + (", and the modules named below," if facts.saved else "")
        + " were trained, all else is the base's own. The base is not in this repository.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n## How to load\n\n{_explain_loading(facts, repo_id)}"
    )


def _sign(text: str) -> str:
    """A card with a last line by which a later push knows that no person edited it."""
    return f"{text}\n{_SIGNATURE}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def _unsign(card: str) -> str:
    return card.rpartition(f"\n{_SIGNATURE}")[0]


def _list_rows(facts: _Facts) -> list[tuple[str, str]]:
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
    for name in _SHOWN_OF_TASK:
        value = facts.task.get(name)
        if isinstance(value, list) and value:
            more = f" and {len(value) - _MOST_LABELS:,} more" if len(value) > _MOST_LABELS else ""
            rows.append((name, _code([str(item) for item in value[:_MOST_LABELS]]) + more))
        elif isinstance(value, str | int):
            rows.append((name, _code(str(value))))
    return rows


def _find_hub_id(config: LNTuningConfig) -> str | None:
    """The base's id; a local path is nobody else's business, and the hub refuses it."""
    base = config.base_model_name_or_path
    is_id = bool(base) and "/" in base and _ID.fullmatch(base) and not Path(base).exists()
    return base if is_id else None


def _warn_of_path(config: LNTuningConfig) -> None:
    base = config.base_model_name_or_path
    if base and (Path(base).expanduser().is_absolute() or Path(base).exists()):
        warn(
            f"the {CONFIG_FILE} names the base by a path of this machine, {shorten(base)!r}. It "
            "goes up as it is, and nobody else can load the base by it: to change that, save the "
            "adapter with config.replace(base_model_name_or_path='owner/name')",
            UserWarning,
        )


def _code(value: str | Sequence[str] | None) -> str:
    values = [value] if isinstance(value, str) else value or ()
    plain = (re.sub(r"[`|\r\n]", " ", text) for text in values)
    return ", ".join(f"`{text}`" for text in plain) or "not recorded"


def _explain_loading(facts: _Facts, repo_id: str) -> str:
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
