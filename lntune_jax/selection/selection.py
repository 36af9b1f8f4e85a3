"""A decided selection as a value: the leaves of a tree, the role of each, and why."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from ..config import LNTuningConfig
from ..errors import ConfigError, SelectionError, TreeError
from ..messages import list_names
from ..names.maps import NameMap, get_name_map
from ..partition import Partition, split_params
from ..paths import flatten, get_shape, join
from .quantized import find_scales
from .report import LeafReport, ParamReport
from .roles import STATE_ROLE, TRAINABLE_ROLES, RoledTree

TRAINABLE, FROZEN = "trainable", "frozen"


class SelectedLeaf(NamedTuple):
    """One leaf of a selection.

    Attributes:
        path: the leaf path.
        shape: its shape; None where it is no array.
        dtype: its dtype's name, or the name of its type where it is no array.
        role: "norm", "saved", "frozen" or "state".
        is_norm: whether it belongs to a norm, trained or not.
        reason: why it has this role; empty where there is nothing to say.
        is_repeat: whether it is an NNX variable that came before, under another path.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> lnt.select({"ln": {"scale": jnp.ones(4)}}, lnt.LNTuningConfig()).leaves[0].role
        'norm'
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str
    role: str
    is_norm: bool
    reason: str
    is_repeat: bool = False


@dataclass(frozen=True, repr=False)
class Selection:
    """Which leaves of a tree train, and why. Immutable and hashable; holds no arrays.

    `print(selection)` says which leaves train, by which rule and pattern.

    Attributes:
        config: the config that was matched.
        leaves: a `SelectedLeaf` for each leaf, in the tree's order.
        treedef: the structure of the tree.
        norms: the paths of the norms that the caller named, by the names of `name_map`; None where
            they were found.
        name_map: the map whose names the patterns are for; None for the tree's own.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
        >>> selection = lnt.select(params, lnt.LNTuningConfig())
        >>> print(selection)
        trainable params: 4 || all params: 20 || trainable%: 20.0000
        trains, as a norm by its name and shape (every norm trains):
          ln_1.scale  float32[4]
        >>> selection.labels()
        {'fc': {'kernel': 'frozen'}, 'ln_1': {'scale': 'trainable'}}
    """

    config: LNTuningConfig
    leaves: tuple[SelectedLeaf, ...]
    treedef: Any  # a jax.tree_util.PyTreeDef
    norms: tuple[str, ...] | None = None
    name_map: NameMap | None = None

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        paths = list_names(list(self.trainable), str, most=3)
        return f"<Selection of {len(self.trainable):,} of {len(self.leaves):,} leaves: {paths}>"

    def __str__(self) -> str:
        return _describe(self)

    @functools.cached_property
    def by_path(self) -> Mapping[str, SelectedLeaf]:
        """The leaves by their paths."""
        return {leaf.path: leaf for leaf in self.leaves}

    @functools.cached_property
    def trainable(self) -> Mapping[str, SelectedLeaf]:
        """The leaves that train, by their paths."""
        return {leaf.path: leaf for leaf in self.leaves if leaf.role in TRAINABLE_ROLES}

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.config, self.leaves, self.norms))

    def partition(self, params: Any) -> Partition:
        """Splits `params` into the leaves that train and the rest, as `partition_params` does.

        Args:
            params: the tree that was selected from, or one with the same leaf paths and shapes
                in another container.

        Raises:
            SelectionError: `params` has other leaves or shapes; names them.
            TreeError: a leaf that trains is one `nnx.Param` under two paths; names it.
        """
        values, treedef = jax.tree.flatten(params)
        if treedef != self.treedef:
            return partition_tree(assign_selection(self, params), self.config.param_dtype)
        # The tree that was selected from, whose paths need not be worked out again.
        for leaf, value in zip(self.leaves, values, strict=True):
            _check_shape(leaf, value)
        _refuse_shared([x.path for x in self.leaves if x.is_repeat and x.role in TRAINABLE_ROLES])
        trains = (leaf.role in TRAINABLE_ROLES for leaf in self.leaves)
        paths = (leaf.path for leaf in self.leaves)
        leaves = zip(paths, values, trains, strict=True)
        return split_params(leaves, treedef, self.config.param_dtype)

    def labels(self) -> Any:
        """The tree with "trainable" or "frozen" at each leaf, for `optax.multi_transform`."""
        labels = [TRAINABLE if leaf.role in TRAINABLE_ROLES else FROZEN for leaf in self.leaves]
        return self.treedef.unflatten(labels)

    def report(self) -> ParamReport:
        """Counts what trains, as `report_params` does."""
        arrays = [leaf for leaf in self.leaves if leaf.shape is not None]
        # What several modules share counts once.
        sizes = {x.path: 0 if x.is_repeat else math.prod(x.shape or ()) for x in arrays}
        paths = [tuple(leaf.path.split(".")) for leaf in self.leaves]
        scales = {join(path) for path in find_scales(paths)}
        trainable = sum(sizes[path] for path in self.trainable)
        # The scales of quantised kernels are no parameters of the model.
        total = sum(
            sizes[leaf.path]
            for leaf in arrays
            if leaf.role != STATE_ROLE and leaf.path not in scales
        )
        leaves = (LeafReport(x.path, x.shape or (), x.dtype, x.role) for x in arrays)
        return ParamReport(trainable, total, 100 * trainable / max(total, 1), tuple(leaves))

    def patterns(self, separator: str = "/") -> list[str]:
        """One regular expression for each leaf that trains; it matches that leaf and no other.

        For programs that freeze what no pattern finds (`re.search`) in the path of a leaf, such as
        MaxText's `trainable_parameters_mask`. A leading `params` and a trailing `value` in the
        path make no difference.

        Args:
            separator: what the program writes between the keys of a path.

        Example:
            >>> import jax.numpy as jnp
            >>> import lntune_jax as lnt
            >>> decoder = {"norm": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
            >>> lnt.select({"decoder": decoder}, lnt.LNTuningConfig()).patterns()
            ['^(params/)*decoder/norm/scale(/value)?$']
        """
        between = re.escape(separator)
        return [
            f"^(params{between})*{between.join(map(re.escape, path.split('.')))}({between}value)?$"
            for path in self.trainable
        ]


def get_config(config: LNTuningConfig | Selection) -> LNTuningConfig:
    """The config itself, or that of a selection.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(config, Selection):
        return config.config
    if not isinstance(config, LNTuningConfig):
        raise ConfigError(
            "config must be an LNTuningConfig or the Selection that lntune_jax.select gives, not "
            f"{type(config).__name__}"
        )
    return config


def assign_selection(
    selection: Selection,
    params: Any,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> RoledTree:
    """Gives the leaves of `params` the roles that a selection has decided, by path.

    Raises:
        ConfigError: `norms` or `name_map` is given beside the selection.
        SelectionError: `params` has other leaves than the selection, or other shapes.
    """
    refuse_names(selection, norms, name_map)
    leaves, treedef = flatten(params)
    known = selection.by_path
    names = [join(leaf.path) for leaf in leaves]
    if len(names) != len(known) or any(name not in known for name in names):
        raise _explain_other_tree(known, names)
    for name, leaf in zip(names, leaves, strict=True):
        _check_shape(known[name], leaf.value)
    return RoledTree(leaves, treedef, [known[name].role for name in names])


def refuse_names(
    selection: Selection, norms: Iterable[str] | None, name_map: str | NameMap | None
) -> None:
    """Raises a `ConfigError` where what a selection has decided is to be decided again."""
    # The map of the selection itself says nothing new.
    has_other_map = name_map is not None and get_name_map(name_map) != selection.name_map
    for name, is_given in (("norms", norms is not None), ("name_map", has_other_map)):
        if is_given:
            raise ConfigError(
                f"{name} is given together with a Selection, which has been decided: pass "
                f"{name} to lntune_jax.select instead"
            )


def partition_tree(tree: RoledTree, dtype: str | None) -> Partition:
    """Splits a tree whose roles are known; `dtype` as in `split_params`."""
    roles = list(zip(tree.leaves, tree.roles, strict=True))
    _refuse_shared([join(x.path) for x, role in roles if x.is_repeat and role in TRAINABLE_ROLES])
    leaves = ((join(leaf.path), leaf.value, role in TRAINABLE_ROLES) for leaf, role in roles)
    return split_params(leaves, tree.treedef, dtype)


def _refuse_shared(names: Sequence[str]) -> None:
    """Refuses to make two trainable leaves of one: they would drift apart."""
    if names:
        raise TreeError(
            f"{list_names(names)} would train twice: each is an nnx.Param that another module "
            "holds too. Pass nnx.state(model), which lists it once, with "
            "norms=lnt.norm_modules(model); nnx.update puts it back"
        )


def _check_shape(known: SelectedLeaf, value: Any) -> None:
    shape = get_shape(value)
    if shape is not None and tuple(shape) != known.shape:
        raise SelectionError(
            f"the leaf {known.path!r} has shape {tuple(shape)}, but {known.shape} in the tree that "
            "the selection was made from: call select again with this tree"
        )


def _explain_other_tree(known: Mapping[str, Any], names: Sequence[str]) -> SelectionError:
    missing = [path for path in known if path not in set(names)]
    extra = [name for name in names if name not in known]
    said = [f"it lacks {list_names(missing)}"] if missing else []
    said += [f"it also has {list_names(extra)}"] if extra else []
    return SelectionError(
        f"these params are not the tree that the selection was made from: {'; '.join(said)}. Call "
        "select again with this tree"
    )


def _describe(selection: Selection) -> str:
    """The text of `print(selection)`: the counts, then groups of leaves that share a reason."""
    groups: dict[tuple[bool, str], Counter[tuple[str, str]]] = {}
    for leaf in selection.leaves:
        if not leaf.reason:
            continue
        trains = leaf.role in TRAINABLE_ROLES
        kind = f"{leaf.dtype}[{', '.join(map(str, leaf.shape or ()))}]"
        layers = re.sub(r"(?<![^.])\d+(?![^.])", "*", leaf.path)
        groups.setdefault((trains, leaf.reason), Counter())[layers, kind] += 1
    lines = [str(selection.report())]
    for (trains, reason), rows in sorted(groups.items(), key=lambda item: not item[0][0]):
        lines.append(f"{'trains' if trains else 'frozen'}, {reason}:")
        width = max(len(path) for path, _ in rows)
        for (path, kind), count in rows.items():
            times = f"  x {count}" if count > 1 else ""
            lines.append(f"  {path.ljust(width)}  {kind}{times}".rstrip())
    return "\n".join(lines)
