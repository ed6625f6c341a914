"""A small network for each kind of weight, and a batch that all of them take."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

BATCH = 12


class OfSequences(nn.Module):
    """A recurrent module, or attention, over the rows of a small image; what it says on average is classified."""

    def __init__(self, within, width=8):
        super().__init__()
        self.within, self.head = within, nn.Linear(width, 4)

    def forward(self, x):
        x = x.squeeze(1)
        if isinstance(self.within, nn.MultiheadAttention) or type(self.within).__name__.endswith("Attention"):
            y = self.within(x, x, x)[0]
        elif type(self.within).__name__.endswith("Bilinear"):
            y = self.within(x[:, :4], x[:, 4:])
        else:
            made = self.within(x)
            y = made[0] if isinstance(made, tuple) else made
        return self.head(y.mean(1))


class OfSteps(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(8, 4)

    def forward(self, x):
        state = None
        for row in x.squeeze(1).unbind(1):
            state = self.cell(row, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


KINDS = {
    "Conv1d": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    ),
    "Conv2d": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Flatten(),
        nn.Linear(72, 4),
    ),
    "Conv3d": lambda: nn.Sequential(
        nn.Unflatten(2, (4, 2)),
        nn.Conv3d(1, 8, (3, 2, 3), padding=(1, 0, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 4),
    ),
    "ConvTranspose2d": lambda: nn.Sequential(
        nn.ConvTranspose2d(1, 4, 3, stride=2, output_padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 18, 4)
    ),
    "RNN": lambda: OfSequences(nn.RNN(8, 8, batch_first=True)),
    "LSTM": lambda: OfSequences(nn.LSTM(8, 8, 2, batch_first=True)),
    "GRU": lambda: OfSequences(nn.GRU(8, 4, bidirectional=True, batch_first=True)),
    "RNNCell": lambda: OfSteps(nn.RNNCell(8, 8)),
    "LSTMCell": lambda: OfSteps(nn.LSTMCell(8, 8)),
    "GRUCell": lambda: OfSteps(nn.GRUCell(8, 8)),
    "MultiheadAttention": lambda: OfSequences(nn.MultiheadAttention(8, 2, batch_first=True)),
    "TransformerEncoder": lambda: OfSequences(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    ),
    "Bilinear": lambda: OfSequences(nn.Bilinear(8, 8, 8)),
    "Conv1D of transformers": lambda: OfSequences(Conv1D(8, 8)),
    "Linear": lambda: OfSequences(nn.Linear(8, 8)),
}


class Rounded(nn.Module):
    """Whole numbers from 0 to 4, so that an embedding takes the batch of all the others."""

    def forward(self, x):
        return x.clamp(-2, 2).round().long() + 2


class Halved(nn.Conv1d):
    def forward(self, x):
        return super().forward(x) / 2


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


def tied():
    pair = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    pair[2].weight = pair[0].weight
    return pair


def of_channels(convolution):
    """A convolution of two channels over halves of the rows."""
    return OfSequences(nn.Sequential(nn.Unflatten(1, (2, 4)), convolution, nn.Flatten(1, 2)))


# Weights that stay dense, all of them `within`; a head beside them can be sparse.
DENSE = {
    "Conv2d with groups": lambda: of_channels(nn.Conv2d(2, 2, 3, padding=1, groups=2)),
    "Embedding": lambda: OfSequences(nn.Sequential(Rounded(), nn.Embedding(5, 8), nn.Flatten(1, 2))),
    "Linear under weight_norm": lambda: OfSequences(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    "Conv2d under weight_norm": lambda: of_channels(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1))
    ),
    "Linear tied to another": lambda: OfSequences(tied()),
    "Conv1d with a forward of its own": lambda: OfSequences(Halved(8, 8, 3, padding=1)),
    "a subclass of Linear with a forward of its own": lambda: OfSequences(OwnLinear(8, 8)),
}

_draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(BATCH, 1, 8, 8, generator=_draw), torch.randint(4, (BATCH,), generator=_draw)


def network(kind):
    torch.manual_seed(0)
    return (KINDS | DENSE)[kind]()
