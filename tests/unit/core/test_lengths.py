import numpy as np
import pytest

from temper.core.lengths import batches, cut, gathered, groups, masked, probing, stretched
from temper.core.schema import Schema, TensorSpec

TOKENS = TensorSpec(name="tokens", shape=(None, "length"), dtype="int64")
IMAGE = TensorSpec(name="image", shape=(None, 2), dtype="float32")
SCHEMA = Schema(inputs=(TOKENS, IMAGE), outputs=(IMAGE,), nesting="tensor")
LENGTHS = np.array([3, 1, 3, 2, 3])


def stored() -> tuple[np.ndarray, ...]:
    """Tokens count up from one, zeros are padding, and the image says which example it is."""
    tokens = np.where(np.arange(3) < LENGTHS[:, None], np.arange(1, 4), 0)
    return tokens, np.repeat(np.arange(5, dtype=np.float32)[:, None], 2, axis=1), LENGTHS


def test_groups_have_one_length_and_hold_every_example_once() -> None:
    found = [each.tolist() for each in groups(LENGTHS, 5, 2)]
    assert found == [[1], [3], [0, 2], [4]]
    assert [each.tolist() for each in groups(None, 5, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_no_padding_reaches_the_model(batch: int) -> None:
    for rows, (tokens, image) in batches(SCHEMA, stored(), batch):
        assert tokens.all()
        assert tokens.shape == (len(rows), LENGTHS[rows[0]])
        assert image[:, 0].tolist() == rows.tolist()
        assert tokens.flags.c_contiguous


def test_outputs_are_put_back_in_order_and_padded_with_zeros() -> None:
    chunks = [(tokens.astype(np.float32), image) for _, (tokens, image) in batches(SCHEMA, stored(), 2)]
    tokens, image = gathered(list(groups(LENGTHS, 5, 2)), chunks)
    np.testing.assert_array_equal(tokens, stored()[0])
    np.testing.assert_array_equal(image, stored()[1])


def test_padding_of_outputs_is_masked() -> None:
    positions = list(groups(LENGTHS, 5, 2))
    chunks = [(tokens.astype(np.float32), image) for _, (tokens, image) in batches(SCHEMA, stored(), 2)]
    (tokens, image), plain = masked(positions, chunks), gathered(positions, chunks)
    assert isinstance(tokens, np.ma.MaskedArray)
    assert (~tokens.mask).sum(axis=1).tolist() == LENGTHS.tolist()
    np.testing.assert_array_equal(tokens.data, plain[0])
    assert not isinstance(image, np.ma.MaskedArray)


def test_probing_takes_the_middle_the_ends_and_what_is_measured() -> None:
    assert probing(np.array([5, 3, 9, 4, 5]), 7) == [5, 3, 7, 9]
    assert probing(np.array([1, 1]), None) == [2, 1]
    assert probing(np.array([6]), None) == [6]


def test_outputs_of_some_examples_keep_their_order() -> None:
    (whole,) = gathered([np.array([7, 9]), np.array([8])], [[np.array([[7.0], [9.0]])], [np.array([[8.0]])]])
    assert whole[:, 0].tolist() == [7, 8, 9]


def test_cut_and_stretched() -> None:
    array = np.arange(12).reshape(2, 2, 3)
    assert cut(array, 2, 2).shape == (2, 2, 2)
    assert cut(array, None, 2) is array
    assert stretched(array, 2, 5)[0, 0].tolist() == [0, 1, 2, 0, 1]
    assert stretched(array, 2, 1).shape == (2, 2, 1)
    assert stretched(array, None, 7) is array
