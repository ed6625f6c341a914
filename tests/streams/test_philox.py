"""The generator, by the answers that its authors publish with it (Random123, kat_vectors)."""

from __future__ import annotations

import pytest
import torch

from pollard.kernels.code.philox import words
from pollard.streams import Stream

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, answer", KNOWN)
def test_known_answers(counter, key, answer):
    assert tuple(map(int, words([torch.tensor(word) for word in counter], key))) == answer


# The counter of the second one stands for no column.
@pytest.mark.parametrize("counter, key, answer", [KNOWN[0], KNOWN[2]])
def test_known_answers_where_a_stream_has_them(target, counter, key, answer):
    c, row, layer, draw = counter
    stream = Stream(key[0] + (key[1] << 32), layer, draw)
    columns = torch.tensor([64 * (c // 16) + 16 * word + c % 16 for word in range(4)])
    numbers = stream.uniform_at(torch.full((4,), row), columns)
    assert (numbers.double() * 2**24).tolist() == [word >> 8 for word in answer]
    if c == 0:
        assert torch.equal(stream.uniform(row, row + 1, 64)[0, columns], numbers)


def test_words_of_a_counter_that_broadcasts_are_those_of_each():
    counters, rows = torch.arange(5), torch.tensor([[3], [2**32 - 1]])
    together = words([counters, rows, 7, 9], (11, 13))
    for i, row in enumerate(rows.view(-1).tolist()):
        for c in range(5):
            alone = words([torch.tensor(word) for word in (c, row, 7, 9)], (11, 13))
            assert [int(word[i, c]) for word in together] == [int(word) for word in alone]
