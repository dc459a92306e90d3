"""Modifiers of llm-compressor, one by one: their arguments, checked, with its defaults."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from jaxsparse.calibration import Criterion, magnitude, sparsegpt, wanda
from jaxsparse.patterns.base import Pattern, Unstructured
from jaxsparse.patterns.nm import NM
from jaxsparse.recipes.configuration import RecipeError, check_keys, integer, number
from jaxsparse.recipes.modules import check_pattern
from jaxsparse.trees import near_misses

# Keys of every modifier; they order and label, and change no weight of a one-shot run.
_LABELS = ("index", "group", "start", "end", "update")
_PRUNING = (
    *("sparsity", "sparsity_profile", "mask_structure", "owl_m", "owl_lmbda"),
    *("sequential_update", "targets", "ignore"),
)
_SURGEON = ("block_size", "dampening_frac", "preserve_sparsity_mask", "offload_hessians")
_MAGNITUDE = (
    *("targets", "init_sparsity", "final_sparsity", "update_scheduler", "scheduler_args"),
    *("mask_structure", "leave_enabled", "apply_globally"),
)


@dataclasses.dataclass(frozen=True)
class Modifier:
    """What a modifier asks for.

    Attributes:
      where: how messages name it: its keys in the recipe.
      criterion: of `prune_oneshot`.
      pattern: of every layer it is for.
      sparsity: None for a pattern that fixes it.
      per: "output" for Wanda's single weights, else "layer".
      targets, ignore: names, expressions and classes of layers.
      owl: (M, lambda) of a distribution by outliers, None for a uniform one.
      inside: whether a target may be a module that layers lie in.
    """

    where: str
    criterion: Criterion
    pattern: Pattern
    sparsity: float | None
    per: Literal["layer", "output"]
    targets: tuple[str, ...]
    ignore: tuple[str, ...] = ()
    owl: tuple[float, float] | None = None
    inside: bool = True

    keys: ClassVar = {
        "SparseGPTModifier": (*_LABELS, *_PRUNING, *_SURGEON),
        "WandaPruningModifier": (*_LABELS, *_PRUNING),
        "MagnitudePruningModifier": (*_LABELS, *_MAGNITUDE),
    }


def modifiers_of(recipe: Mapping[Any, Any]) -> list[Modifier]:
    """All modifiers of a recipe, in its order.

    They stand in `..._modifiers` or `modifiers` of a `..._stage`, or at the top, by key or as a
    list of mappings with one key each.

    Raises:
      RecipeError: on whatever is unknown, missing, out of range or contradictory.
    """
    found = [_read(name, given, where) for name, given, where in _listed(recipe, "")]
    if not found:
        raise RecipeError(f"the recipe has no modifier; {', '.join(Modifier.keys)} would work")
    return found


def _listed(section: Any, where: str) -> Iterator[tuple[str, Any, str]]:
    """Every modifier by its class, with its arguments and its place."""
    if not isinstance(section, Mapping):
        raise RecipeError(f"{where} is {section!r}; a mapping would work")
    for key, held in section.items():
        here, name = f"{where}.{key}".lstrip("."), str(key)
        if name.endswith("_stage") and not where:
            yield from _listed(held, here)
        elif name == "modifiers" or name.endswith("_modifiers"):
            yield from _of_group(held, here)
        else:
            known = ("modifiers", "pruning_modifiers", *(("test_stage",) * (not where)))
            raise RecipeError(
                f"{where or 'the recipe'}: unknown key {key!r}; {near_misses(name, known)}"
            )


def _of_group(held: Any, where: str) -> Iterator[tuple[str, Any, str]]:
    if isinstance(held, list):
        for number, item in enumerate(held):
            if not isinstance(item, Mapping) or len(item) != 1:
                raise RecipeError(
                    f"{where}[{number}] is {item!r}; a mapping from one class to its arguments "
                    "would work"
                )
            yield from _of_group(item, f"{where}[{number}]")
        return
    if not isinstance(held, Mapping):
        raise RecipeError(f"{where} is {held!r}; a mapping from classes to arguments would work")
    for key, given in held.items():
        yield str(key), given, f"{where}.{key}"


def _read(name: str, given: Any, where: str) -> Modifier:
    if name not in Modifier.keys:
        raise RecipeError(f"{where}: unknown modifier {name!r}; {near_misses(name, Modifier.keys)}")
    if not isinstance(given, Mapping):
        raise RecipeError(f"{where} is {given!r}; a mapping of arguments would work")
    check_keys(given, Modifier.keys[name], where)
    return (
        _magnitude(given, where) if name.startswith("Magnitude") else _pruning(name, given, where)
    )


def _pruning(name: str, given: Mapping[str, Any], where: str) -> Modifier:
    pattern = _pattern(given.get("mask_structure", "0:0"), where)
    sparsity = _share(given, "sparsity", where)
    owl = _owl(given, where)
    if isinstance(pattern, NM):
        if sparsity is not None and abs(sparsity - pattern.max_sparsity) > 1e-6:
            raise RecipeError(
                f"{where}: sparsity {sparsity} and mask_structure {given['mask_structure']!r}, "
                f"which is {pattern.max_sparsity:g}, contradict each other; either alone would work"
            )
        if owl is not None:
            raise RecipeError(
                f"{where}: sparsity_profile: mask_structure {given['mask_structure']!r} leaves "
                "nothing to distribute; '0:0' would work"
            )
        sparsity = None
    elif sparsity is None:
        raise RecipeError(f"{where}.sparsity is missing; a share in [0, 1), 0.5, would work")
    _flag(given, "sequential_update", where)
    per = "output" if name.startswith("Wanda") and not isinstance(pattern, NM) else "layer"
    return Modifier(
        where,
        _surgeon(given, where) if name.startswith("SparseGPT") else wanda(),
        pattern,
        sparsity,
        per,
        _patterns(given.get("targets", ["Linear"]), f"{where}.targets"),
        _patterns(given.get("ignore", []), f"{where}.ignore", empty=True),
        owl,
    )


def _surgeon(given: Mapping[str, Any], where: str) -> Criterion:
    if _flag(given, "preserve_sparsity_mask", where):
        raise RecipeError(
            f"{where}.preserve_sparsity_mask: zeros that are there are not held; "
            "js.calibration.reconstructed(js.calibration.given(masks)) keeps a mask"
        )
    _flag(given, "offload_hessians", where)
    block = integer(given.get("block_size", 128))
    if block is None or block < 1:
        raise RecipeError(f"{where}.block_size is {given['block_size']!r}; 128 would work")
    damping = number(given, "dampening_frac", where, 0.01)
    if damping <= 0:
        raise RecipeError(f"{where}.dampening_frac is {damping}; 0.01 would work")
    return sparsegpt(damping=damping, block=block)


def _magnitude(given: Mapping[str, Any], where: str) -> Modifier:
    structure = given.get("mask_structure", "unstructured")
    if structure not in ("unstructured", "0:0"):
        raise RecipeError(
            f"{where}.mask_structure is {structure!r}; 'unstructured' is read of this modifier"
        )
    for key in ("targets", "init_sparsity", "final_sparsity"):
        if given.get(key) is None:
            raise RecipeError(f"{where}.{key} is missing")
    first, last = (_share(given, key, where) for key in ("init_sparsity", "final_sparsity"))
    if first != last:
        raise RecipeError(
            f"{where}: init_sparsity {first} and final_sparsity {last} are a schedule, which is "
            "for training: js.prune(rules, schedule=js.cubic(...)) would work, so would two equal "
            "ones"
        )
    if number(given, "start", where, 0):
        raise RecipeError(
            f"{where}.start is {given['start']}: one-shot begins at once; 0 would work"
        )
    for key in ("leave_enabled", "apply_globally"):
        if _flag(given, key, where):
            raise RecipeError(f"{where}.{key}: true is not read; false would work")
    targets = _patterns(given["targets"], f"{where}.targets")
    return Modifier(where, magnitude(), Unstructured(), last, "layer", targets, inside=False)


def _pattern(structure: Any, where: str) -> Pattern:
    """n:m of a recipe says how many of m go; ours how many stay. 0:0 is unstructured."""
    parts = structure.split(":") if isinstance(structure, str) else []
    if structure == "unstructured" or [part.strip() for part in parts] == ["0", "0"]:
        return Unstructured()
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        pruned, m = map(int, parts)
        if 0 < pruned < m:
            return NM(m - pruned, m)
    raise RecipeError(
        f"{where}.mask_structure is {structure!r}; '0:0', and 'n:m' with 0 < n < m of which n go, "
        "would work (YAML reads 2:4 without quotes as a number)"
    )


def _share(given: Mapping[str, Any], key: str, where: str) -> float | None:
    if isinstance(given.get(key), list | Mapping):
        raise RecipeError(
            f"{where}.{key} is a list: which layer each number is for follows from the order of "
            "modules in torch, which a tree does not have; a modifier for each would work"
        )
    share = number(given, key, where)
    if share is not None and not 0 <= share < 1:
        raise RecipeError(f"{where}.{key} is {share}; a share in [0, 1) would work")
    return share


def _owl(given: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    profile = given.get("sparsity_profile")
    if profile is not None and str(profile).lower() != "owl":
        raise RecipeError(f"{where}.sparsity_profile is {profile!r}; 'owl' would work")
    multiple, strength = number(given, "owl_m", where), number(given, "owl_lmbda", where)
    said = [profile is not None, multiple is not None, strength is not None]
    if any(said) and not all(said):
        raise RecipeError(
            f"{where}: sparsity_profile: owl, owl_m and owl_lmbda go together; all of them, such "
            "as 5 and 0.08, or none would work"
        )
    return None if multiple is None or strength is None else (multiple, strength)


def _patterns(value: Any, where: str, *, empty: bool = False) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not (listed or empty):
        raise RecipeError(f"{where} is {value!r}; a name or a list of names would work")
    for pattern in listed:
        if not isinstance(pattern, str):
            raise RecipeError(f"{where}: {pattern!r} is no text; 'Linear' would work")
        check_pattern(pattern, where)
    return tuple(listed)


def _flag(given: Mapping[str, Any], key: str, where: str) -> bool:
    value = given.get(key)
    if value is not None and not isinstance(value, bool):
        raise RecipeError(f"{where}.{key} is {value!r}, not true or false")
    return bool(value)
