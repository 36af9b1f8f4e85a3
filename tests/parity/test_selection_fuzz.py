"""Which leaves train, against PEFT itself: random modules, random patterns."""

import random
import re
import warnings
from typing import Any

import jax
import pytest
import torch
from peft import LNTuningConfig, get_peft_model

import lntune_jax as lnt
from lntune_jax.errors import SelectionError

CASES, SEED = 2_000, 20_261_129
NAMES = ["norm", "LayerNorm", "ln_1", "layer", "layers", "encoder", "head", "out"]
# No entry is the end of another name's letters: PEFT would save "ln_1" by "1".
ENTRIES = [*NAMES, *NAMES, "encoder.norm", "layers.0", "LayerNorm.norm", "0", "layer.ln_1"]
# None matches the path of a leaf without that of its module: leaves are our own addition.
EXPRESSIONS = [".*norm", ".*LayerNorm.*", ".*layers?", r".*\.(ln_1|norm)", "encoder", r".*\d", ".*"]
EXPRESSIONS += [r".*\bnorm", "(?:(?!head).)*norm", r".*(?<=layers)\.\d", r"(\w+)\.(?:\1|norm)"]


class RMSNorm(torch.nn.Module):
    """As in transformers: a weight and no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))


NORMS = (torch.nn.LayerNorm, RMSNorm)


class Block(torch.nn.Module):
    """A module of modules, which may have any names."""

    def __init__(self, children: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def make_module(rng: random.Random, depth: int) -> torch.nn.Module:
    """A norm, a linear layer, or a container of them; any of them may have a norm's name."""
    match rng.choice(
        ["layer norm", "rms norm", "linear"] + ["block", "list", "dict"] * (depth > 0)
    ):
        case "layer norm":
            return torch.nn.LayerNorm(2)
        case "rms norm":
            return RMSNorm()
        case "linear":
            return torch.nn.Linear(2, 2)
        case "list":
            kind = rng.choice([torch.nn.Sequential, torch.nn.ModuleList])
            modules = [make_module(rng, depth - 1) for _ in range(rng.randint(1, 3))]
            return kind(*modules) if kind is torch.nn.Sequential else kind(modules)
        case kind:
            return make_block(rng, depth, torch.nn.ModuleDict if kind == "dict" else Block)


def make_block(rng: random.Random, depth: int, kind: Any = Block) -> torch.nn.Module:
    names = rng.sample(NAMES, rng.randint(1, 4))
    return kind({name: make_module(rng, depth - 1) for name in names})


def make_fields(rng: random.Random) -> dict[str, Any]:
    def make_patterns(most: int) -> Any:
        if rng.random() < 0.35:
            return rng.choice(EXPRESSIONS)
        return rng.sample(ENTRIES, rng.randint(1, most))

    fields = {"target_modules": make_patterns(4)}
    if rng.random() < 0.5:
        fields["exclude_modules"] = make_patterns(2)
    if rng.random() < 0.4:
        fields["modules_to_save"] = rng.sample(ENTRIES, rng.randint(1, 2))
    return fields


def train_with_peft(module: torch.nn.Module, fields: dict[str, Any]) -> set[str] | None:
    """The parameters that train under PEFT, by their own names; None where it fails."""
    try:
        model = get_peft_model(module, LNTuningConfig(**fields))
    except (ValueError, AttributeError, TypeError, KeyError, RuntimeError, NotImplementedError):
        return None
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    added = (
        r"base_model\.model\.|base_layer\.|ln_tuning_layers\.default\.|modules_to_save\.default\."
    )
    return {re.sub(added, "", name) for name in names}


def is_named(module: str, patterns: Any) -> bool:
    """PEFT's rule for a module."""
    if patterns is None or isinstance(patterns, str):
        return bool(patterns) and re.fullmatch(patterns, module) is not None
    return any(module == entry or module.endswith("." + entry) for entry in patterns)


def is_within(name: str, patterns: Any) -> bool:
    segments = name.split(".")
    above = [".".join(segments[:end]) for end in range(1, len(segments))]
    return any(is_named(module, patterns) for module in above)


@pytest.mark.long
def test_what_trains_is_what_peft_trains_over_random_modules_and_patterns() -> None:
    rng, compared, differences = random.Random(SEED), 0, []
    in_target, in_saved, training = 0, 0, 0
    while compared < CASES:
        module, fields = make_block(rng, 3), make_fields(rng)
        names = dict(module.named_parameters())
        norms = [name for name, part in module.named_modules() if isinstance(part, NORMS)]
        if not norms:
            continue
        params = {n: jax.ShapeDtypeStruct(tuple(v.shape), "float32") for n, v in names.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                config = lnt.LNTuningConfig(**fields)
                ours = set(lnt.partition_params(params, config, norms=norms).trainable)
            except SelectionError as error:
                # A target without a norm is refused. That no norm trains must be so in PEFT too.
                ours = set() if re.match("no norm trains|nothing trains", str(error)) else None
            theirs = None if ours is None else train_with_peft(module, fields)
        if ours is None or theirs is None:
            continue
        compared += 1
        saved, excluded = fields.get("modules_to_save"), fields.get("exclude_modules")
        own = {f"{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")} & names.keys()
        own |= {name for name in names if is_within(name, saved)}
        training += bool(own & ours)
        for name in sorted(own & (ours ^ theirs)):
            # An excluded norm stays as it is, where PEFT trains it in a copied container.
            if name in theirs and is_named(name.rpartition(".")[0], excluded):
                in_saved += is_within(name, saved)
                in_target += not is_within(name, saved)
            else:
                differences.append((fields, sorted(names), norms, name, name in ours))
    assert not differences
    assert training > CASES // 2
    assert 0 < in_target + in_saved < CASES // 10
