"""Connectors: shapes, parameter counts, and tables that follow the grid. A new class is tested by existing."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from mm1.errors import UserError
from mm1.model import connector
from mm1.model.connector import AttentionPool, AveragePool, CAbstractor, Connector, pooled_by_products
from mm1.model.positions import resample_positions

CONNECTORS = [value for value in vars(connector).values() if isinstance(value, type) and Connector in value.__bases__]


def small(kind, grid=6, tokens=4):
    settings = {"width": 16, "depth": 1} if kind is CAbstractor else {}
    return kind(8, 12, grid, tokens=tokens, **settings)


def filled(module):
    for index, parameter in enumerate(module.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return module


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_all_three_are_found():
    assert {CAbstractor, AveragePool, AttentionPool} <= set(CONNECTORS)


@pytest.mark.parametrize("kind", CONNECTORS)
@pytest.mark.parametrize("tokens", [1, 4, 9, 25])
def test_any_square_number_of_tokens(kind, tokens):
    made = filled(small(kind, tokens=tokens))
    assert made(torch.randn(3, 36, 8)).shape == (3, tokens, 12)
    assert made.tokens == tokens


@pytest.mark.parametrize("kind", CONNECTORS)
@pytest.mark.parametrize("tokens", [0, -4, 143])
def test_tokens_that_are_no_square_are_refused(kind, tokens):
    with pytest.raises(UserError, match=f"{tokens} tokens per picture; expected a square.*connector.init_args.tokens"):
        small(kind, tokens=tokens)


@pytest.mark.parametrize(("d_out", "millions"), [(1024, 20.6), (2048, 24.8), (3072, 31.1), (4096, 39.4)])
def test_the_c_abstractor_of_the_published_encoder(d_out, millions):
    with torch.device("meta"):
        made = CAbstractor(1280, d_out, 27)
    assert round(numel(made) / 1e6, 1) == millions
    assert round(numel(made.before) / 1e6, 2) == 9.62
    assert round(numel(made.after) / 1e6, 2) == 7.91
    assert made.positions_1PV.shape == (1, 729, 1280)
    assert made(torch.empty(2, 729, 1280, device="meta")).shape == (2, 144, d_out)


@pytest.mark.parametrize("kind", CONNECTORS)
def test_weights_follow_another_grid(kind):
    """27 x 27 patches at 378 px become 48 x 48 at 672 px; here 6 x 6 become 9 x 9."""
    trained, larger = filled(small(kind, grid=6)), filled(small(kind, grid=9))
    larger.load_state_dict(trained.state_dict())
    assert larger(torch.randn(2, 81, 8)).shape == (2, 4, 12)
    if kind is not AveragePool:
        table = trained.positions_1PV
        assert torch.equal(larger.positions_1PV, resample_positions(table, 9))
        assert resample_positions(table, 6) is table


def test_a_resampled_table_keeps_its_directions_and_its_class_token():
    ramp = torch.arange(4.0).view(1, 4).expand(4, 4)  # grows to the right
    table = torch.cat((torch.tensor([[-7.0]]), ramp.reshape(16, 1)))
    found = resample_positions(table, 8, prefix_tokens=1)
    assert found[0] == -7
    square = found[1:].view(8, 8)
    assert (square[:, 1:] > square[:, :-1]).all()
    assert torch.allclose(square[0], square[7], atol=1e-5)


def test_average_pooling_is_the_mean_over_squares():
    made = filled(AveragePool(8, 12, 4, tokens=4))
    patches = torch.randn(1, 16, 8)
    corner = patches[0, [0, 1, 4, 5]].mean(0)
    assert torch.allclose(made(patches)[0, 0], made.readout(corner), atol=1e-6)


def test_attention_pooling_refuses_heads_that_do_not_divide():
    with pytest.raises(UserError, match="3 heads over an encoder of width 8"):
        AttentionPool(8, 12, 6, tokens=4, heads=3)


@pytest.mark.parametrize(("grid", "side"), [(27, 12), (24, 12), (7, 7), (7, 1), (4, 3)])
def test_pooling_by_products_is_pooling(grid: int, side: int) -> None:
    """In both directions: what a GPU does where it may not add up in any order."""
    map_ICSS = torch.randn(2, 3, grid, grid, generator=torch.Generator().manual_seed(0))
    results = []
    for pool in (pooled_by_products, adaptive_avg_pool2d):
        x = map_ICSS.clone().requires_grad_()
        y = pool(x, side)
        (y * torch.arange(y.numel()).reshape(y.shape)).sum().backward()
        results.append((y, x.grad))
    torch.testing.assert_close(*results)
