"""Sharing schemes: which layer uses which FFN, as a list with one FFN index per layer.

A scheme is a name (`all`) or a name with a number of FFNs (`groups:4`). Each is a pure function of
the number of layers. FFNs are numbered in the order in which the layers first use them.

To add a scheme, write the function and enter it in `SCHEMES` or `COUNTED_SCHEMES`.
"""

from collections.abc import Callable, Sequence

from mobillama.core.errors import UserError, did_you_mean


def one_for_all(layers: int) -> list[int]:
    """MobiLlama: one FFN for every layer."""
    return [0] * layers


def one_each(layers: int) -> list[int]:
    """Llama: every layer its own FFN."""
    return list(range(layers))


def pairs(layers: int) -> list[int]:
    """Two neighbouring layers share; with an odd number the last layer is alone."""
    return [layer // 2 for layer in range(layers)]


def sandwich(layers: int) -> list[int]:
    """The first and the last layer own theirs; all between share one."""
    return number([min(layer, 1) if layer < layers - 1 else 2 for layer in range(layers)])


def middle(layers: int) -> list[int]:
    """The middle half shares one FFN; each layer of the first and the last quarter owns its own."""
    edge = layers // 4
    return number([layer if layer < edge or layer >= layers - edge else edge for layer in range(layers)])


def groups(layers: int, ffns: int) -> list[int]:
    """`ffns` runs of neighbouring layers, as equal in length as can be."""
    return [layer * ffns // layers for layer in range(layers)]


def cycle(layers: int, ffns: int) -> list[int]:
    """`ffns` FFNs taken in turn: layer N uses FFN N modulo `ffns`."""
    return [layer % ffns for layer in range(layers)]


SCHEMES: dict[str, Callable[[int], list[int]]] = {
    "all": one_for_all,
    "none": one_each,
    "pairs": pairs,
    "sandwich": sandwich,
    "middle": middle,
}
COUNTED_SCHEMES: dict[str, Callable[[int, int], list[int]]] = {"groups": groups, "cycle": cycle}


def ffn_of_layer(scheme: str, layers: int) -> list[int]:
    """Return the FFN index of each of `layers` layers under `scheme`.

    Raises:
        UserError: the scheme is unknown, its number is missing or superfluous, or it asks for more
            FFNs than there are layers.
    """
    if layers < 1:
        raise UserError(f"num_hidden_layers = {layers}: a model needs at least one layer")
    name, colon, count = scheme.partition(":")
    if name in SCHEMES:
        if colon:
            raise UserError(f"ffn_sharing = {scheme!r}: {name} takes no number; write {name!r}")
        return SCHEMES[name](layers)
    if name not in COUNTED_SCHEMES:
        known = [*SCHEMES, *(f"{counted}:k" for counted in COUNTED_SCHEMES)]
        hint = did_you_mean(name, [*SCHEMES, *COUNTED_SCHEMES]) or f"; choose one of {', '.join(known)}"
        raise UserError(f"ffn_sharing = {scheme!r}: no such scheme{hint}")
    if not (count.isascii() and count.isdigit()):
        raise UserError(f"ffn_sharing = {scheme!r}: say how many FFNs, as in '{name}:4'")
    ffns = int(count)
    if not 1 <= ffns <= layers:
        raise UserError(f"ffn_sharing = {scheme!r}: {layers} layers can have 1 to {layers} FFNs, not {ffns}")
    return COUNTED_SCHEMES[name](layers, ffns)


def require_valid(table: Sequence[int], layers: int) -> None:
    """Check that `table` gives each of `layers` layers an FFN and leaves none unused.

    Raises:
        UserError: the length is wrong, an entry is not a whole number from 0, or an index is skipped.
    """
    if len(table) != layers:
        raise UserError(f"ffn_of_layer has {len(table)} entries for {layers} layers; give one for each layer")
    if any(type(ffn) is not int or ffn < 0 for ffn in table):
        raise UserError(f"ffn_of_layer = {list(table)}: entries are whole numbers from 0")
    if unused := sorted(set(range(max(table) + 1)) - set(table)):
        raise UserError(
            f"ffn_of_layer = {list(table)}: no layer uses FFN {unused[0]}; number them from 0 without gaps"
        )


def number(labels: Sequence[int]) -> list[int]:
    """Return `labels` renamed to 0, 1, 2, ... in the order of their first use."""
    order = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    return [order[label] for label in labels]
