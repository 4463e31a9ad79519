"No number is certified that rounding, scale, hooks or odd settings undo: cases that once were."
import math

import pytest, torch
from torch import nn

from robustnb import lipschitz as lip
from robustnb.certify import certify
from robustnb.layers import affine_map, plain_copy


def _tampered(kind):
    "A network whose rounding, or whose scale, once made a false proof: model, image, label, norm, radius."
    m = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 2)).eval()
    if kind == 'cancelling offsets':
        m[1].weight.data.fill_(1.)
        m[1].bias.data.fill_(1e8)
        m[2].weight.data[:] = torch.tensor([[1.], [0.]])
        m[2].bias.data[:] = torch.tensor([-1e8, .3])
        return m, .8, .2
    s = 1e-13
    m = nn.Sequential(m[0], m[1], nn.ReLU(), m[2]).eval()
    m[1].weight.data.fill_(s)
    m[1].bias.data.fill_(-.5*s)
    m[3].weight.data[:] = torch.tensor([[0.], [1/s]])
    m[3].bias.data[:] = torch.tensor([.2, 0.])
    return m, .5, .4


@pytest.mark.parametrize('kind', ['cancelling offsets', 'tiny units'])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_no_proof_of_what_rounding_or_scale_undoes(kind, norm):
    m, pixel, eps = _tampered(kind)
    x = torch.full((1, 1, 1, 1), pixel)
    ends = torch.cat([x - eps, x, x + eps]).clamp(0, 1)
    assert (m(ends).argmax(1) != 0).any()
    assert not certify(m, x, torch.tensor([0]), norm, eps).any()


def test_no_proof_in_the_coarse_numbers_of_an_autocast():
    for seed in 20, 26:
        torch.manual_seed(seed)
        m = nn.Sequential(nn.Flatten(), nn.Linear(20, 2)).eval()
        x = torch.rand(3, 20, 1, 1)*.6 + .2
        y = m(x).argmax(1)
        alone = [certify(m, x, y, 'linf', eps) for eps in (.01, .05, .1)]
        with torch.autocast('cpu', torch.bfloat16):
            inside = [certify(m, x, y, 'linf', eps) for eps in (.01, .05, .1)]
        assert all(map(torch.equal, alone, inside))


def test_boxes_of_numbers_that_are_not_finite_prove_nothing():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    for bias in math.nan, -math.inf:
        net[0].bias.data.fill_(bias)
        assert lip.lip_box(net, torch.zeros(2), torch.ones(2)).upper == math.inf
    deep = [nn.Linear(1, 1) for _ in range(13)]
    for layer, weight in zip(deep, [1e30]*11 + [1e-38]*2):
        layer.weight.data.fill_(weight)
        layer.bias.data.zero_()
    chain = nn.Sequential(*(step for layer in deep for step in (layer, nn.ReLU()))).eval()
    assert lip.lip_box(chain, torch.zeros(1), torch.ones(1)).upper == math.inf
    with pytest.raises(ValueError, match='high: got values that are not finite'):
        lip.lip_box(net, torch.zeros(2), torch.tensor([1., math.inf]))
    with pytest.raises(ValueError, match='x: got values that are not finite'):
        lip.lip_local(net, torch.tensor([0., math.nan]), .1)


def test_an_average_of_negative_divisor_is_bounded():
    net = nn.Sequential(nn.AvgPool2d(1, divisor_override=-1), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(2, 1, bias=False)).eval()
    net[1].weight.data.fill_(-1.)
    net[1].bias.data[:] = torch.tensor([0., -.5])
    net[4].weight.data[:] = torch.tensor([[1., -1.]])
    low = torch.zeros(1, 1, 1)
    found = lip.lip_lower(net, torch.rand(5, 1, 1, 1), box=(0., 1.)).lower
    assert lip.lip_box(net, low, low + 1).upper >= found*(1 - 1e-9) > .5


def test_batch_norm_of_huge_opposite_shifts_is_bounded():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    net[0].weight.data.fill_(1.)
    net[3].weight.data.fill_(1.)
    for shift in 1e10, 1e12, 1e14:
        net[1].running_mean.fill_(shift)
        net[1].bias.data.copy_(shift*net[1].weight/(net[1].running_var + net[1].eps).sqrt())
        assert lip.lip_box(net, torch.zeros(1), torch.ones(1)).upper > .99


def test_hooks_of_all_modules_are_seen():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    handle = nn.modules.module.register_module_forward_hook(lambda layer, x, out: 10*out)
    try:
        with pytest.raises(ValueError, match='hooks'): lip.lip_product(net, (4,))
    finally: handle.remove()


def test_the_operator_near_the_identity_is_bounded_without_a_certificate():
    W = torch.eye(300).double()
    W[0, 0] += 8e-5
    assert lip.conv_norm(W[:, :, None, None], 1, 1, 1).upper >= 1 + 8e-5


class _Moved(nn.Module):
    "A parametrization that adds to what it is given."
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, t): return t.abs() + self.by


def test_numbers_that_torch_computes_anew_are_the_ones_in_use():
    conv = nn.Conv2d(1, 2, 3)
    nn.utils.parametrize.register_parametrization(conv, 'bias', _Moved(1e17))
    W, b = affine_map(conv, (1, 4, 4))
    assert W.abs().max() > .1 and b.min() > 9e16   # the shift does not drown the weights
    norm = nn.BatchNorm1d(3).eval()
    nn.utils.parametrize.register_parametrization(norm, 'running_var', _Moved(3.))
    net = nn.Sequential(nn.Linear(2, 3), norm, nn.ReLU(), nn.Linear(3, 2)).eval()
    plain = nn.Sequential(*map(plain_copy, net))
    points = torch.rand(5, 2)
    torch.testing.assert_close(plain(points), net(points))
    assert lip.lip_lower(net, points, box=(0., 1.)).lower <= lip.lip_box(net, torch.zeros(2), torch.ones(2)).upper
