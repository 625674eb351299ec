"""The table of sites, and how a user selects from it."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traceformer.errors import SelectionError
from traceformer.sites import GROUPS, SITES, ArrayKey, ArraySpec, Selection, choose, expand_sites, parse_indices

NUMBERS = st.integers(0, 200)
RANGES = st.tuples(NUMBERS, NUMBERS).map(sorted)
SEPARATORS = st.sampled_from([",", " ", ", ", " , ", "\t"])


@given(st.lists(st.one_of(NUMBERS, RANGES), min_size=1), SEPARATORS)
def test_index_lists_mean_the_numbers_and_ranges_in_them(parts: list[int | list[int]], separator: str) -> None:
    written = separator.join(str(part) if isinstance(part, int) else f"{part[0]}-{part[1]}" for part in parts)
    meant: set[int] = set()
    for part in parts:
        meant |= {part} if isinstance(part, int) else set(range(part[0], part[1] + 1))
    assert parse_indices(written) == tuple(sorted(meant))


@given(st.text(alphabet="0123456789,- x.L", max_size=12))
def test_an_index_list_is_read_or_refused_never_anything_else(text: str) -> None:
    try:
        numbers = parse_indices(text)
    except SelectionError:
        return
    assert list(numbers) == sorted(set(numbers))
    assert set("".join(text.split())) <= set("0123456789,-")


@pytest.mark.parametrize("text", ["", "a", "1.5", "3-1", "1--2", "L5H3", "0x1", "0-99999999999"])
def test_what_is_no_index_list_is_refused(text: str) -> None:
    with pytest.raises(SelectionError):
        parse_indices(text)


@given(st.sets(st.integers(-5, 40), min_size=1), st.integers(1, 32))
def test_choose_keeps_what_exists_and_warns_of_the_rest(wanted: set[int], available: int) -> None:
    kept = sorted(wanted & set(range(available)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not kept:
            with pytest.raises(SelectionError, match=f"only heads 0-{available - 1}"):
                choose(tuple(sorted(wanted)), available, "heads")
            return
        assert choose(tuple(sorted(wanted)), available, "heads") == tuple(kept)
    assert bool(caught) == (len(kept) < len(wanted))


def test_all_of_them_is_the_default() -> None:
    assert choose(None, 3, "layers") == (0, 1, 2)


@given(st.lists(st.sampled_from([*GROUPS, *SITES]), min_size=1))
def test_sites_come_in_the_tables_order_each_once(names: list[str]) -> None:
    sites = expand_sites(names)
    table = list(SITES)
    assert [table.index(site) for site in sites] == sorted({table.index(site) for site in sites})
    assert set(sites) == {site for name in names for site in GROUPS.get(name, (name,))}


@pytest.mark.parametrize(("written", "meant"), [("resid_middle", "resid_mid"), ("atn", "attn"), ("q_porj", "q_proj")])
def test_a_misspelt_site_is_answered_with_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(SelectionError, match=f"did you mean '{meant}'"):
        expand_sites([written])


def test_a_group_takes_what_exists_while_a_name_insists() -> None:
    assert Selection(("resid_mid",)).is_named("resid_mid")
    assert not Selection(("resid",)).is_named("resid_mid")
    assert Selection(("resid", "resid_mid")).is_named("resid_mid")


def keys() -> list[ArrayKey]:
    found: list[ArrayKey] = []
    for name, site in SITES.items():
        kinds = (
            [("enc", "self"), ("dec", "self"), ("dec", "cross")]
            if site.of_attention
            else [("enc", None), ("dec", None)]
        )
        found += [ArrayKey(stack, attention, name) for stack, attention in kinds]  # pyright: ignore
    return found


@pytest.mark.parametrize("key", keys(), ids=str)
def test_a_key_is_read_as_it_is_written(key: ArrayKey) -> None:
    assert ArrayKey.parse(str(key)) == key
    spec = ArraySpec(key, (0, 3), (1,), 8)
    assert ArraySpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["resid_mid", "dec.resid_middle", "dec.q", "dec.self.resid_mid", "mid.self.q", ""])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="not an array key"):
        ArrayKey.parse(text)


def test_keys_and_values_of_cross_attention_belong_to_the_encoders_tokens() -> None:
    stacks = {site: ArrayKey("dec", "cross", site).token_stack for site in ("q", "k", "v", "k_proj", "z", "attn_out")}
    assert stacks == {"q": "dec", "k": "enc", "v": "enc", "k_proj": "enc", "z": "dec", "attn_out": "dec"}
    assert ArrayKey("dec", "cross", "attn_pattern").key_stack == "enc"
    assert ArrayKey("dec", "self", "attn_pattern").key_stack == "dec"
