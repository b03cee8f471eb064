"""The order of samples: a bijection, invertible, unlike the identity, and blind to the number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama.data.order import Permutation, SampleOrder, SubsetShare, rank_slice, round_keys

SHARES = [
    SubsetShare("a", 101, 101),
    SubsetShare("b", 40, 100),
    SubsetShare("c", 300, 75),
    SubsetShare("d", 5, 0),
]
PER_EPOCH = 276


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_permutation_takes_each_place_once_and_backward_undoes_it(size, seed, epoch):
    permutation = Permutation(size, round_keys(seed, "x", epoch))
    images = permutation.forward(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))
    assert np.array_equal(permutation.backward(images), np.arange(size))


def test_a_large_domain_is_walked_without_leaving_it():
    size = 10**12 + 39
    places = np.random.default_rng(0).integers(0, size, 5000)
    permutation = Permutation(size, round_keys(7, "x", 0))
    images = permutation.forward(places)
    assert images.min() >= 0
    assert images.max() < size
    assert np.array_equal(permutation.backward(images), places)


def test_the_order_is_statistically_unlike_the_identity_and_unlike_a_linear_sequence():
    size = 50_000
    images = Permutation(size, round_keys(3, "x", 0)).forward(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 4 / np.sqrt(size)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 4 / np.sqrt(size)
    # A linear congruential order has one or two differences modulo its size; a random one nearly all.
    for lag in (1, 2, 3, 64, 256):
        differences = (images[lag:] - images[:-lag]) % size
        assert len(np.unique(differences)) > 0.6 * len(differences)
    # Places any power of two apart are as far from each other as random ones: a third of the size.
    for lag in 2 ** np.arange(15):
        assert 0.32 * size < np.abs(images[lag:] - images[:-lag]).mean() < 0.347 * size
    # Fixed points of a random permutation: one on average.
    assert (images == np.arange(size)).sum() < 8


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        Permutation(1000, round_keys(seed, label, epoch)).forward(np.arange(1000))
        for seed, label, epoch in [(0, "x", 0), (0, "x", 1), (1, "x", 0), (0, "y", 0)]
    ]
    for one in range(4):
        for other in range(one):
            assert abs(np.corrcoef(orders[one], orders[other])[0, 1]) < 0.13


def test_the_order_is_fixed_for_ever():
    """Runs are replayed from their seed: these numbers were written down when the format was."""
    permutation = Permutation(10, round_keys(0, "subset/a", 0))
    assert permutation.forward(np.arange(10)).tolist() == FIXED_ORDER


FIXED_ORDER = [4, 6, 8, 3, 2, 7, 1, 9, 0, 5]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_world_size_sees_the_same_samples_in_each_step(world):
    order = SampleOrder(SHARES, seed=5)
    batch = 37
    for step in range(12):
        whole = order.locate(np.arange(step * batch, (step + 1) * batch))
        parts = [
            order.locate(rank_slice(step * batch, batch, rank=rank, world=world)) for rank in range(world)
        ]
        for side in (0, 1):
            assert np.array_equal(np.concatenate([part[side] for part in parts]), whole[side])


def test_each_subset_gives_its_quota_in_each_epoch_and_each_sample_once_a_pass():
    order = SampleOrder(SHARES, seed=11)
    epochs = 12
    subsets, samples = order.locate(np.arange(epochs * PER_EPOCH))
    for epoch in range(epochs):
        counts = np.bincount(subsets[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH], minlength=4)
        assert counts.tolist() == [101, 100, 75, 0]
    # 12 * 75 = 900 draws of 300 samples are 3 passes; 1,200 of 40 are 30; 1,212 of 101 are 12.
    for subset, passes in ((0, 12), (1, 30), (2, 3)):
        counts = np.bincount(samples[subsets == subset], minlength=SHARES[subset].samples)
        assert set(counts.tolist()) == {passes}


def test_within_one_pass_no_sample_comes_twice_even_across_epochs():
    order = SampleOrder(SHARES, seed=2)
    subsets, samples = order.locate(np.arange(4 * PER_EPOCH))
    drawn = samples[subsets == 2]
    assert len(drawn) == 300
    assert len(set(drawn.tolist())) == 300


def test_the_mixture_is_spread_over_the_whole_epoch():
    order = SampleOrder([SubsetShare("a", 9000, 9000), SubsetShare("b", 1000, 1000)], seed=0)
    subsets, _ = order.locate(np.arange(10_000))
    shares = subsets.reshape(10, 1000).mean(axis=1)
    assert shares.min() > 0.06
    assert shares.max() < 0.14


def test_the_inverse_finds_every_index_that_brute_force_finds():
    order = SampleOrder(SHARES, seed=9)
    until = 7 * PER_EPOCH + 13
    subsets, samples = order.locate(np.arange(until))
    for subset, sample in [(0, 0), (0, 100), (1, 7), (1, 39), (2, 0), (2, 151), (2, 299)]:
        expected = np.flatnonzero((subsets == subset) & (samples == sample)).tolist()
        assert order.indices_of(subset, sample, until=until) == expected
        later = [index for index in expected if index >= 500]
        assert order.indices_of(subset, sample, first=500, until=until) == later
    assert order.indices_of(3, 0, until=until) == []
    assert order.indices_of(0, 0, until=0) == []
