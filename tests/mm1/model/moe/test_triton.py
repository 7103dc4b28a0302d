"""The Triton kernels against plain torch, run by Triton's interpreter, so that they are checked without a GPU too."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("the GPU runs them compiled, see test_gpu.py", allow_module_level=True)

from mm1.model import dense_triton
from mm1.model.ffn import gated
from mm1.model.moe import triton_kernels as kernels
from mm1.model.moe.kernels import _add, expert_rows


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [24, 1032])
def test_rows_are_copied_and_added(width):
    x = random(5, width)
    tokens = torch.tensor([3, 0, 0, 4, 2, 3])
    assert torch.equal(kernels.take_rows(x, tokens), x[tokens])
    places = torch.tensor([[2, 1], [-1, -1], [4, -1], [0, 5], [3, -1]])
    y = random(6, width, seed=1)
    expected = torch.stack([sum((y[row] for row in rows if row >= 0), torch.zeros(width)) for rows in places.tolist()])
    assert torch.allclose(kernels.add_rows(y, places), expected)


@pytest.mark.parametrize("width", [24, 1032])
def test_swiglu_and_its_gradients(width):
    pre, weights, grad = random(7, 2 * width).requires_grad_(), random(7, seed=1).requires_grad_(), random(7, width)
    expected = gated(pre) * weights.unsqueeze(-1)
    expected.backward(grad)
    assert torch.allclose(kernels.swiglu(pre.detach(), weights.detach()), expected, atol=1e-6)
    grad_pre, grad_weights, hidden = dense_triton.weighed_backward(grad, pre.detach(), weights.detach())
    assert torch.allclose(hidden, expected, atol=1e-6)
    assert torch.allclose(grad_pre, pre.grad, atol=1e-5)
    assert torch.allclose(grad_weights, weights.grad, atol=1e-4)


@pytest.mark.parametrize("counts", [[70, 0, 3, 130], [0, 0, 0, 5], [512, 600, 1000, 1]])
@pytest.mark.parametrize("turned", [True, False])
def test_each_expert_multiplies_its_own_rows(counts, turned):
    rows, inner, columns = sum(counts), 72, 264
    a, b = random(rows, inner), random(4, inner, columns, seed=1)
    ends = torch.tensor(counts).cumsum(0, dtype=torch.int32)
    found = kernels.grouped_mm(a, b.transpose(1, 2).contiguous() if turned else b, ends, turned)
    expected = torch.cat([part @ matrix for part, matrix in zip(a.split(counts), b, strict=True)])
    assert torch.allclose(found, expected, atol=1e-3)


def test_no_rows_have_no_answers_and_no_gradients():
    """As of a rank whose experts nobody chose, or all of whose are shadowed."""
    x, weights = random(0, 16).requires_grad_(), random(0).requires_grad_()
    gate_up, down = random(2, 48, 16).requires_grad_(), random(2, 16, 24).requires_grad_()
    y = expert_rows(x, weights, torch.zeros(2, dtype=torch.int64), gate_up, down)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), [x, weights, gate_up, down])
    assert [tuple(grad.shape) for grad in grads] == [(0, 16), (0,), (2, 48, 16), (2, 16, 24)]
    assert all((grad == 0).all() for grad in grads)
    nobody = torch.full((3, 2), -1)
    assert torch.equal(_add(x.detach(), torch.zeros(0, dtype=torch.int64), nobody), torch.zeros(3, 16))
