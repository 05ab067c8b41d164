"""Wrap padding of tokens and ids against NumPy's periodic padding."""

import numpy as np
import pytest
import torch

from dit360.wrap import crop_tokens, pad_ids, pad_tokens


def grid_ids(height: int, width: int) -> torch.Tensor:
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).view(-1, 3)


@pytest.mark.parametrize("columns", [0, 1, 3, 6])
def test_tokens_against_numpy(columns: int) -> None:
    tokens = torch.rand(2, 4 * 6, 5, generator=torch.Generator().manual_seed(0))
    padded = pad_tokens(tokens, (4, 6), columns)
    expected = np.pad(
        tokens.view(2, 4, 6, 5).numpy(), ((0, 0), (0, 0), (columns, columns), (0, 0)), mode="wrap"
    )
    assert np.array_equal(padded.numpy(), expected.reshape(2, -1, 5))
    assert torch.equal(crop_tokens(padded, (4, 6), columns), tokens)


def test_ids_of_sources_and_extended_ones() -> None:
    ids = grid_ids(2, 4)
    before = ids.clone()
    source = pad_ids(ids, (2, 4), 2).view(2, 8, 3)
    extended = pad_ids(ids, (2, 4), 2, "extended").view(2, 8, 3)
    assert source[1, :, 2].tolist() == [2, 3, 0, 1, 2, 3, 0, 1]
    assert extended[1, :, 2].tolist() == [-2, -1, 0, 1, 2, 3, 4, 5]
    for padded in (source, extended):
        assert padded[:, :, 0].unique().tolist() == [0]
        assert padded[:, :, 1].tolist() == [[0] * 8, [1] * 8]
    assert torch.equal(ids, before)  # the caller's tensor is left alone
    assert torch.equal(pad_ids(ids, (2, 4), 0, "extended"), ids)


def test_extended_ids_are_exact_in_bfloat16() -> None:
    ids = grid_ids(2, 128)
    padded = pad_ids(ids.bfloat16(), (2, 128), 2, "extended")
    assert padded[:132, 2].tolist() == list(range(-2, 130))


@pytest.mark.parametrize(
    ("tokens", "columns", "message"),
    [
        (24, 7, "cannot wrap 7 columns around a grid of 6"),
        (24, -1, "cannot wrap -1 columns"),
        (23, 1, "there are 23 tokens, expected 24 for a grid of 4x6"),
    ],
)
def test_mistakes(tokens: int, columns: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad_tokens(torch.zeros(1, tokens, 3), (4, 6), columns)
    with pytest.raises(ValueError, match=message):
        pad_ids(torch.zeros(tokens, 3), (4, 6), columns)


def test_cropping_wants_padded_tokens() -> None:
    with pytest.raises(ValueError, match="there are 24 tokens, expected 32"):
        crop_tokens(torch.zeros(1, 24, 3), (4, 6), 1)


def test_unknown_mode_of_ids() -> None:
    with pytest.raises(ValueError, match="pad_ids is 'mirror'; use one of source, extended"):
        pad_ids(torch.zeros(24, 3), (4, 6), 1, "mirror")  # pyright: ignore[reportArgumentType]
