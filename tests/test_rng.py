"""Random bits: known answers, and statistical tests on the streams as they are used."""

from __future__ import annotations

import itertools
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from halfulp.numbers.rng import LANES, hash_elements, lanes, random_bits, slot_id, stream_keys
from support.oracle import philox4x32, random_word

N = 1 << 20
ALPHA = 1e-6  # for a single test: there are a few hundred p-values, all from fixed seeds


def along_elements() -> np.ndarray:
    """One tensor in one step, element after element."""
    return random_bits(stream_keys(0, 3, slot_id("exp_avg_sq"), 1000), 0, N).numpy()


def along_steps() -> np.ndarray:
    """One element, step after step."""
    keys = stream_keys(0, 3, slot_id("exp_avg_sq"), np.arange(1, N // 4 + 1))
    return words(keys, 77)


def along_parameters() -> np.ndarray:
    """The first elements of many parameters in one step."""
    return words(stream_keys(0, np.arange(N // 4), slot_id("exp_avg"), 5), 0)


def along_seeds() -> np.ndarray:
    """The same element under many seeds."""
    return np.array([words(stream_keys(seed, 0, slot_id("exp_avg"), 1)[None], 0)[0] for seed in range(20_000)])


def interleaved() -> np.ndarray:
    """Few elements of each step and lane in turn, as a small tensor uses them."""
    keys = stream_keys(1, 0, slot_id("optimizer"), np.arange(1, N // 32 + 1))
    return np.stack([words(keys, e, lane) for lane in LANES[1:3] for e in range(16)], axis=1).ravel()


def lane_after_lane() -> np.ndarray:
    """All lanes of one element, then of the next."""
    key = stream_keys(0, 3, slot_id("optimizer"), 1000).tolist()
    count = N // len(LANES)
    return torch.stack([random_bits([*key, lane], 0, count) for lane in LANES], dim=1).flatten().numpy()


def words(keys: np.ndarray, element: int, multiplier: int = LANES[0]) -> np.ndarray:
    """Word of one element under many keys, by numpy (checked against the torch definition below)."""
    k0, k1 = keys[:, 0].astype(np.uint64), keys[:, 1].astype(np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    start = (element * 0x9E3779B9 & 0xFFFFFFFF) ^ ((element >> 32) * 0xBB67AE85 & 0xFFFFFFFF)
    x = np.uint64(start) ^ k0
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x21F0AAAD) + k1) & mask
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(multiplier)) & mask
    return (x ^ (x >> np.uint64(15))).astype(np.int64)


STREAMS = {
    f.__name__: f for f in (along_elements, along_steps, along_parameters, along_seeds, interleaved, lane_after_lane)
}


@pytest.fixture(scope="module", params=STREAMS)
def stream(request: pytest.FixtureRequest) -> np.ndarray:
    return STREAMS[request.param]()


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """The vectors of Random123's ``kat_vectors`` for philox4x32-10."""
    assert tuple(philox4x32(counter, key)) == expected
    seed = key[0] | key[1] << 32
    ours = stream_keys(seed, counter[0], counter[1], counter[2] | counter[3] << 32)
    assert ours.tolist() == list(expected[:2])


def test_words_are_the_exact_model() -> None:
    for seed, parameter, slot, step, element in [
        (0, 0, "exp_avg", 1, 0), (2**63 + 5, 12, "exp_avg_sq", 2**33, 2**32 - 1), (7, 3, "param", 9, 2**40 + 17),
    ]:  # fmt: skip
        key = stream_keys(seed, parameter, slot_id(slot), step)
        got = random_bits(key, element, 3).tolist()
        assert got == [random_word(seed, parameter, slot, step, element + i) for i in range(3)]
        for lane in LANES:
            got = random_bits([*key.tolist(), lane], element, 3).tolist()
            assert got == [random_word(seed, parameter, slot, step, element + i, lane) for i in range(3)]
            assert got == [int(words(key[None], element + i, lane)[0]) for i in range(3)]


def test_slot_ids_are_crc32() -> None:
    assert slot_id("exp_avg") == zlib.crc32(b"exp_avg")


def test_stream_keys_broadcast() -> None:
    keys = stream_keys(5, [[0], [1]], [[7, 8, 9]], 4)
    assert keys.shape == (2, 3, 2)
    assert keys.dtype == np.uint32
    assert keys[1, 2].tolist() == stream_keys(5, 1, 9, 4).tolist()


def test_any_chunking_gives_the_same_words() -> None:
    key = stream_keys(0, 0, 1, 2)
    whole = random_bits(key, 100, 1000)
    assert torch.equal(torch.cat([random_bits(key, 100, 333), random_bits(key, 433, 667)]), whole)
    assert torch.equal(hash_elements(key, torch.arange(100, 1100).reshape(10, 100)), whole.reshape(10, 100))
    assert int(whole.min()) >= 0
    assert int(whole.max()) < 1 << 32


# ---------------------------------------------------------------- statistics


def test_uniform_in_the_top_bits(stream: np.ndarray) -> None:
    for shift, bins in ((24, 256), (20, 4096)):
        counts = np.bincount(stream >> shift, minlength=bins)
        assert stats.chisquare(counts).pvalue > ALPHA
    assert stats.kstest(stream / 2.0**32, "uniform").pvalue > ALPHA


def test_uniform_in_the_low_bits(stream: np.ndarray) -> None:
    """Rounding uses 16 to 24 bits from the top; the others are no worse."""
    for shift in (0, 8, 16):
        assert stats.chisquare(np.bincount(stream >> shift & 255, minlength=256)).pvalue > ALPHA


def test_every_bit_is_balanced(stream: np.ndarray) -> None:
    ones = np.array([(stream >> b & 1).sum() for b in range(32)])
    z = (ones - len(stream) / 2) / np.sqrt(len(stream) / 4)
    assert np.abs(z).max() < 5


def test_bits_are_pairwise_independent(stream: np.ndarray) -> None:
    bits = (stream[:200_000, None] >> np.arange(32) & 1) * 2.0 - 1
    correlation = bits.T @ bits / np.sqrt(len(bits))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5.5


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 16, 64, 128, 512, 1024, 4096, 16384])
def test_no_serial_correlation(stream: np.ndarray, lag: int) -> None:
    x = stream / 2.0**32 - 0.5
    z = (x[:-lag] * x[lag:]).mean() * 12 * np.sqrt(len(x) - lag)
    assert abs(z) < 5
    same = np.array([1 - ((stream[:-lag] ^ stream[lag:]) >> bit & 1).mean() for bit in range(32)])
    assert np.abs(same - 0.5).max() * 2 * np.sqrt(len(x) - lag) < 5.5
    flips = np.bitwise_count((stream[:-lag] ^ stream[lag:]).astype(np.uint64))
    assert abs(flips.mean() - 16) / np.sqrt(8 / len(flips)) < 5


def test_pairs_are_uniform(stream: np.ndarray) -> None:
    """Serial test: consecutive pairs fill the unit square evenly (64 x 64 cells)."""
    even = stream[: len(stream) // 2 * 2] >> 26
    counts = np.bincount(even[::2] * 64 + even[1::2], minlength=4096)
    assert stats.chisquare(counts).pvalue > ALPHA


def test_runs_up_and_down(stream: np.ndarray) -> None:
    turning = np.diff(np.sign(np.diff(stream)))
    n = len(stream)
    z = (np.count_nonzero(turning) - 2 * (n - 2) / 3) / np.sqrt((16 * n - 29) / 90)
    assert abs(z) < 5


def test_hamming_weights_are_binomial(stream: np.ndarray) -> None:
    weight = np.bincount(np.bitwise_count(stream.astype(np.uint64)), minlength=33)[6:27]
    expected = stats.binom.pmf(np.arange(6, 27), 32, 0.5)
    assert stats.chisquare(weight, expected / expected.sum() * weight.sum()).pvalue > ALPHA


def test_repeats_are_no_more_than_birthdays() -> None:
    """Within a stream a word never comes twice (the hash is a bijection); across streams as often as by chance."""
    assert len(np.unique(along_elements())) == N
    for name in ("along_steps", "along_parameters", "interleaved"):
        s = STREAMS[name]()
        repeats, expected = len(s) - len(np.unique(s)), len(s) ** 2 / 2.0**33
        assert stats.poisson.sf(repeats - 1, expected) > ALPHA
        assert stats.poisson.cdf(repeats, expected) > ALPHA


def test_keys_do_not_repeat() -> None:
    """64-bit keys of 4 M (parameter, slot, step) triples: no two alike, nor either word more often than by chance."""
    keys = stream_keys(0, np.arange(64)[:, None, None], [[[1], [2]]], np.arange(1, 8193)).reshape(-1, 2)
    joined = keys[:, 0].astype(np.uint64) << np.uint64(32) | keys[:, 1]
    assert len(np.unique(joined)) == len(joined)
    for word in keys.T:
        expected = len(word) ** 2 / 2.0**33
        assert abs(len(word) - len(np.unique(word)) - expected) < 6 * np.sqrt(expected)


NEIGHBOURS = {
    "next step": ((0, 0, 1, 10), (0, 0, 1, 11)),
    "next parameter": ((0, 0, 1, 10), (0, 1, 1, 10)),
    "next slot": ((0, 0, slot_id("exp_avg"), 10), (0, 0, slot_id("exp_avg_sq"), 10)),
    "next seed": ((0, 0, 1, 10), (1, 0, 1, 10)),
    "seed's high word": ((0, 0, 1, 10), (1 << 32, 0, 1, 10)),
    "parameter and step swapped": ((0, 3, 1, 10), (0, 10, 1, 3)),
    "step's high word": ((0, 0, 1, 10), (0, 0, 1, 10 + (1 << 32))),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_streams_are_independent(name: str) -> None:
    """Neighbouring streams, element by element and shifted: no correlation, half the bits differ, no shared words."""
    first, second = (random_bits(stream_keys(*which), 0, N // 4).numpy() for which in NEIGHBOURS[name])
    for shift in (0, 1, 5, 128):
        a, b = first[: len(first) - shift], second[shift:]
        z = ((a / 2.0**32 - 0.5) * (b / 2.0**32 - 0.5)).mean() * 12 * np.sqrt(len(a))
        assert abs(z) < 5
        differ = np.array([((a ^ b) >> bit & 1).mean() for bit in range(32)])
        assert np.abs(differ - 0.5).max() * 2 * np.sqrt(len(a)) < 5.5
        counts = np.bincount((a >> 28) * 16 + (b >> 28), minlength=256)
        assert stats.chisquare(counts).pvalue > ALPHA
    shared = len(np.intersect1d(first, second))
    expected = len(first) ** 2 / 2.0**32
    assert abs(shared - expected) < 6 * np.sqrt(expected)


def test_elements_beyond_32_bits() -> None:
    """The stream goes on: other words than at the start, uniform, and no correlation with them."""
    key = stream_keys(0, 0, 1, 1)
    first = random_bits(key, 0, N // 4).numpy()
    for start in (1 << 32, 3 << 32, 1 << 40, (1 << 48) + 12345):
        later = random_bits(key, start, N // 4).numpy()
        assert stats.chisquare(np.bincount(later >> 24, minlength=256)).pvalue > ALPHA
        z = ((first / 2.0**32 - 0.5) * (later / 2.0**32 - 0.5)).mean() * 12 * np.sqrt(len(first))
        assert abs(z) < 5
        assert np.mean(first == later) < 1e-4
    across = random_bits(key, (1 << 32) - 100, 200)
    assert torch.equal(across, torch.cat([random_bits(key, (1 << 32) - 100, 100), random_bits(key, 1 << 32, 100)]))


def shortest_dual(ratio: int) -> float:
    """Length of the shortest vector of the dual lattice of pairs ``(x, ratio x)``, of the longest that is possible."""
    a, b = np.array([1 << 32, 0], object), np.array([-ratio, 1], object)
    while True:
        if a @ a > b @ b:
            a, b = b, a
        times = round(Fraction(int(a @ b), int(a @ a)))
        if times == 0:
            return float((a @ a) ** 0.5 / ((1 << 32) * 2 / 3**0.5) ** 0.5)
        b = b - times * a


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(len(LANES)), 2)))
def test_pairs_of_lanes_fill_the_square(first: int, second: int) -> None:
    ratio = LANES[second] * pow(LANES[first], -1, 1 << 32) % (1 << 32)
    assert shortest_dual(ratio) > (0.55 if second < 8 else 0.3)
    key = stream_keys(0, 3, slot_id("optimizer"), 7).tolist()
    a, b = (random_bits([*key, LANES[i]], 0, N // 4).numpy() for i in (first, second))
    assert stats.chisquare(np.bincount((a >> 26) * 64 + (b >> 26), minlength=4096)).pvalue > ALPHA
    differ = np.array([((a ^ b) >> bit & 1).mean() for bit in range(32)])
    assert np.abs(differ - 0.5).max() * 2 * np.sqrt(len(a)) < 5.5


def test_lanes_by_name() -> None:
    assert lanes(("exp_avg", "exp_avg_sq")) == {"param": LANES[0], "exp_avg": LANES[1], "exp_avg_sq": LANES[2]}
    with pytest.raises(ValueError, match="11 states of a parameter, got 12"):
        lanes(tuple("abcdefghijkl"))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("bit", range(0, 40, 3))
def test_avalanche_of_an_element_bit(bit: int, lane: int) -> None:
    """Flipping one bit of the element flips each output bit with probability one half, over many keys."""
    keys = stream_keys(0, 0, 1, np.arange(60_000))
    elements = np.random.default_rng(bit).integers(0, 1 << 33, 4)
    flips = np.concatenate([words(keys, int(e), lane) ^ words(keys, int(e) ^ (1 << bit), lane) for e in elements])
    rate = np.array([(flips >> b & 1).mean() for b in range(32)])
    # a two-round hash has a small bias (0.1 % by its authors); rounding needs only independence
    assert np.abs(rate - 0.5).max() < 0.01


@pytest.mark.parametrize("what", ["seed", "parameter", "slot", "step"])
def test_avalanche_of_the_stream(what: str) -> None:
    base = np.arange(4000)
    rates = []
    for bit in (0, 1, 7, 15, 31):
        flipped = base ^ (1 << bit)
        if what == "seed":
            pairs = [[stream_keys(int(s), 1, 2, 3) for s in side[:1000]] for side in (base, flipped)]
            first, second = (np.stack(p) for p in pairs)
        else:
            where = {"parameter": 0, "slot": 1, "step": 2}[what]
            fixed = [11, 12, 13]
            first, second = (
                stream_keys(0, *(side if i == where else fixed[i] for i in range(3))) for side in (base, flipped)
            )
        flips = words(first, 5) ^ words(second, 5)
        rates.append([(flips >> b & 1).mean() for b in range(32)])
    samples = 1000 if what == "seed" else 4000
    assert np.abs(np.array(rates) - 0.5).max() < 5 / (2 * np.sqrt(samples))
