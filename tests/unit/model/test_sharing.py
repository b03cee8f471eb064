import pytest

from mobillama.core.errors import UserError
from mobillama.model.sharing import COUNTED_SCHEMES, SCHEMES, ffn_of_layer, require_valid


@pytest.mark.parametrize(
    ("scheme", "layers", "table"),
    [
        ("all", 4, [0, 0, 0, 0]),
        ("none", 4, [0, 1, 2, 3]),
        ("pairs", 5, [0, 0, 1, 1, 2]),
        ("groups:3", 7, [0, 0, 0, 1, 1, 2, 2]),
        ("groups:1", 3, [0, 0, 0]),
        ("cycle:3", 7, [0, 1, 2, 0, 1, 2, 0]),
        ("sandwich", 5, [0, 1, 1, 1, 2]),
        ("sandwich", 2, [0, 1]),
        ("sandwich", 1, [0]),
        ("middle", 8, [0, 1, 2, 2, 2, 2, 3, 4]),
        ("middle", 3, [0, 0, 0]),
        ("middle", 22, [0, 1, 2, 3, 4, *[5] * 12, 6, 7, 8, 9, 10]),
    ],
)
def test_scheme_gives_this_table(scheme, layers, table):
    assert ffn_of_layer(scheme, layers) == table


@pytest.mark.parametrize("layers", range(1, 25))
def test_every_scheme_is_valid_and_numbered_by_first_use_at_any_depth(layers):
    schemes = [*SCHEMES, *(f"{name}:{k}" for name in COUNTED_SCHEMES for k in range(1, layers + 1))]
    for scheme in schemes:
        table = ffn_of_layer(scheme, layers)
        require_valid(table, layers)
        assert list(dict.fromkeys(table)) == list(range(max(table) + 1)), scheme


@pytest.mark.parametrize("ffns", [1, 2, 5, 22])
def test_counted_schemes_hold_as_many_ffns_as_asked(ffns):
    for name in COUNTED_SCHEMES:
        assert len(set(ffn_of_layer(f"{name}:{ffns}", 22))) == ffns


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ("pears", "did you mean pairs?"),
        ("grups:2", "did you mean groups?"),
        ("xyz", "choose one of all, none, pairs, sandwich, middle, groups:k, cycle:k"),
        ("all:2", "takes no number"),
        ("groups", "as in 'groups:4'"),
        ("groups:two", "as in 'groups:4'"),
        ("cycle:-1", "as in 'cycle:4'"),
        ("groups:0", "1 to 4 FFNs"),
        ("cycle:5", "1 to 4 FFNs"),
    ],
)
def test_nonsense_scheme_is_answered_with_the_remedy(scheme, says):
    with pytest.raises(UserError, match="ffn_sharing") as caught:
        ffn_of_layer(scheme, 4)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([0, 0], "2 entries for 3 layers"),
        ([0, 2, 2], "no layer uses FFN 1"),
        ([1, 1, 1], "no layer uses FFN 0"),
        ([0, -1, 0], "whole numbers from 0"),
        ([0, 1.0, 0], "whole numbers from 0"),
        ([0, True, 0], "whole numbers from 0"),
    ],
)
def test_table_that_does_not_fit_is_refused(table, says):
    with pytest.raises(UserError, match=says):
        require_valid(table, 3)
