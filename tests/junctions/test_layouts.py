"""Layouts: what the axes of features are, in words, and when they can be read off the encoder."""

import pytest
import torch
from torch import nn

from cggm.junctions.layouts import Layout, infer_layout, layout_of


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("B D", (2, 5)),
        ("B T D", (2, 3, 5)),
        ("B D T", (2, 5, 3)),
        ("T B D", (3, 2, 5)),
        ("B D H W", (2, 5, 3, 4)),
        ("B H W D", (2, 3, 4, 5)),
        ("B D Z H W", (2, 5, 2, 3, 4)),
        ("(B T) D H W", (6, 5, 3, 4)),
        ("(B 3) D H W", (6, 5, 3, 4)),
        ("(T B) D", (6, 5)),
    ],
)
def test_every_layout_is_read_as_its_words_say(text, shape):
    """Each element holds 10 b + d for its sample b and feature d, wherever they are."""
    names = text.replace("(", " ").replace(")", " ").split()
    sizes = {"B": 2, "D": 5, "T": 3, "3": 3, "H": 3, "W": 4, "Z": 2}
    full = [sizes[n] for n in names]

    def along(name):
        return torch.arange(sizes[name]).view([-1 if n == name else 1 for n in names])

    features = (10 * along("B") + along("D")).expand(full).reshape(shape)
    layout = Layout(text)
    positions = layout.to_positions(features, samples=2)
    wanted = torch.tensor([[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]])
    assert positions.shape[::2] == (2, 5) if positions.ndim == 3 else positions.shape == (2, 5)
    assert (positions.view(2, -1, 5) == wanted[:, None]).all()
    assert (layout.to_map(features, samples=2).reshape(2, 5, -1) == wanted[..., None]).all()
    flags = layout.beside(torch.tensor([[True], [False]]), features, "audio")
    assert (features.masked_fill(flags, -1).eq(-1) == features.lt(10)).all()


@pytest.mark.parametrize(
    "text", ["B", "D", "B B D", "B T T D", "B (T D)", "(B T U) D", "(B T D", "B T) D", "", 3]
)
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match='layout must name each axis of the features once, the samples "B"'):
        Layout(text)


@pytest.mark.parametrize(("text", "rows"), [("(B 4) D", 6), ("B T D", 6)])
def test_features_that_do_not_fit_are_refused(text, rows):
    with pytest.raises(ValueError, match=r"encoders\['audio'\]: layout="):
        Layout(text).samples(torch.zeros(rows, 5), "audio")


class Transposing(nn.Module):
    """A convolution whose output is transposed, or a linear layer's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer


CONV1D = nn.Sequential(nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5), nn.ReLU())
CONV2D = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())
TRANSFORMER = nn.TransformerEncoderLayer(8, 2, batch_first=True)


@pytest.mark.parametrize(
    ("encoder", "shape", "wanted"),
    [
        (nn.Sequential(nn.Flatten()), (4, 9), "B D"),
        (CONV1D, (4, 5, 7), "B D T"),
        (CONV1D, (4, 5, 5), "B D T"),
        (CONV1D, (4, 5, 4), "B D T"),
        (Transposing(CONV1D), (4, 7, 5), "B T D"),
        (Transposing(CONV1D), (4, 5, 5), None),
        (nn.Linear(3, 5), (4, 7, 5), "B T D"),
        (nn.Linear(3, 5), (4, 5, 5), "B T D"),
        (nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)), (4, 4, 5), "B T D"),
        (Transposing(nn.Linear(3, 5)), (4, 7, 5), "B T D"),
        (Transposing(nn.Linear(3, 5)), (4, 4, 5), None),  # samples first, or second?
        (Transposing(nn.Linear(3, 5)), (4, 7, 9), None),
        (Transposing(nn.GRU(3, 5)), (7, 4, 5), None),
        (Transposing(nn.GRU(3, 5, batch_first=True)), (4, 7, 5), "B T D"),
        (nn.Sequential(nn.Unflatten(1, (3, 5))), (4, 3, 5), None),
        (CONV2D, (4, 5, 3, 3), "B D H W"),
        (Transposing(CONV2D), (4, 3, 3, 5), "B H W D"),
        (Transposing(CONV2D), (4, 9, 3, 3), "B D H W"),  # of an earlier layer
        (Transposing(nn.LayerNorm(5)), (4, 3, 3, 5), "B H W D"),
        (Transposing(nn.ReLU()), (4, 5, 3, 3), None),
        (nn.Conv3d(3, 5, 1), (4, 5, 2, 3, 3), "B D Z H W"),
        (
            Transposing(nn.Sequential(nn.Conv1d(3, 9, 1), nn.Linear(5, 5))),
            (4, 9, 5),
            None,
        ),  # a gate over time
        (Transposing(nn.Sequential(nn.Conv2d(3, 9, 1), nn.Conv2d(9, 5, 1))), (4, 9, 3, 5), None),
        (
            nn.Sequential(nn.Conv1d(3, 9, 1), nn.Linear(5, 5)),
            (4, 9, 5),
            "B T D",
        ),  # runs last, whatever it is for
    ],
)
def test_a_layout_is_inferred_where_it_is_unambiguous_and_else_refused(encoder, shape, wanted):
    features = torch.zeros(shape)
    if wanted is not None:
        assert infer_layout(features, encoder, None, "audio").text == wanted
        return
    with pytest.raises(ValueError, match=r"encoders\['audio'\]: .*say it, as in Encoder\(\.\.\., layout="):
        infer_layout(features, encoder, None, "audio")


@pytest.mark.parametrize(
    ("encoder", "states", "wanted"),
    [
        (nn.GRU(3, 5), False, "T B D"),
        (nn.GRU(3, 5, batch_first=True), False, "B T D"),
        (nn.GRU(3, 5, batch_first=True), True, "T B D"),
        (nn.TransformerEncoderLayer(4, 2), False, "T B D"),
        (nn.Sequential(nn.Linear(3, 8), TRANSFORMER), False, "B T D"),
        (nn.Linear(3, 5), False, None),
    ],
)
def test_torchs_own_sequence_modules_are_known(encoder, states, wanted):
    found = layout_of(encoder, states)
    assert found == (None if wanted is None else Layout(wanted))
