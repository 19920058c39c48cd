import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize

from fsr_lab.core.box_projection import move_onto_plane

NORMS = ("linf", "l2")
ORDER = {"linf": torch.inf, "l2": 2}


def problem(count, size, *, dtype=torch.float64, reach=0.5):
    """Points, normals with zeros among them, and planes at up to `reach` of the farthest the box lets them be."""
    points = torch.rand(count, size, dtype=dtype)
    points[:, 0], points[:, 1] = 0, 1
    normal = torch.randn(count, size, dtype=dtype)
    normal[:, 2] = 0
    share = reach * torch.rand(count, dtype=dtype)
    sign = torch.randn(count, dtype=dtype).sign()
    room = torch.where(normal * sign[:, None] > 0, points, 1 - points)
    return points, normal, sign * share * (normal.abs() * room).sum(1)


def solved(point, normal, excess, norm):
    """The least size of a move, by a general solver that knows nothing of the problem's form."""
    point, normal = point.numpy(), normal.numpy()
    size = len(point)
    bounds = list(zip(-point, 1 - point, strict=True))
    if norm == "linf":  # of the variables (move, t): least t with |move_i| <= t
        sides = np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]])
        plane = np.append(normal, 0)[None]
        cost = np.append(np.zeros(size), 1)
        found = linprog(cost, sides, np.zeros(2 * size), plane, [-excess], [*bounds, (0, None)])
        assert found.success
        return found.fun
    plane = LinearConstraint(normal, -excess, -excess)
    found = minimize(
        lambda move: move @ move, np.zeros(size), jac=lambda move: 2 * move, bounds=bounds, constraints=plane,
        method="SLSQP", options={"ftol": 1e-14},
    )  # fmt: skip
    assert found.success
    return found.fun**0.5


def bisected(points, normal, excess, norm):
    """The moves, by halving the interval in which the common multiplier lies; float64."""
    points, normal, excess = points.double(), normal.double(), excess.double()
    step = -excess.sign()[..., None] * (normal.sign() if norm == "linf" else normal)
    low, high = torch.zeros_like(excess), torch.full_like(excess, 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        move = (points + middle[..., None] * step).clamp(0, 1) - points
        short = (normal * move).sum(-1).abs() < excess.abs()
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (points + high[..., None] * step).clamp(0, 1) - points


@pytest.mark.parametrize("norm", NORMS)
def test_no_move_onto_the_plane_is_smaller(norm):
    points, normal, excess = problem(20, 7, reach=0.95)
    moves = move_onto_plane(points, normal, excess, norm)
    torch.testing.assert_close((normal * moves).sum(1), -excess, atol=1e-12, rtol=0)
    assert ((points + moves).clamp(0, 1) - points - moves).abs().max() < 1e-15
    assert (moves[:, 2] == 0).all()
    for point, weight, beyond, size in zip(points, normal, excess, moves.norm(ORDER[norm], dim=1), strict=True):
        assert size.item() == pytest.approx(solved(point, weight, beyond.item(), norm), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reach", [0.05, 0.99])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_images_move_as_bisection_says(norm, reach, dtype, tolerance):
    points, normal, excess = problem(8, 3072, dtype=dtype, reach=reach)
    moves = move_onto_plane(points, normal, excess, norm)
    assert moves.dtype == dtype
    torch.testing.assert_close(moves.double(), bisected(points, normal, excess, norm), atol=tolerance, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_several_points_share_a_plane(norm):
    points, normal, excess = problem(5, 12)
    pairs, beyond = torch.stack([points, points.flip(1)]), torch.stack([excess, -2 * excess])
    moves = move_onto_plane(pairs, normal, beyond, norm)
    assert moves.shape == (2, 5, 12)
    for each, start, distance in zip(moves, pairs, beyond, strict=True):
        torch.testing.assert_close(each, move_onto_plane(start, normal, distance, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_that_misses_the_box_is_approached_as_far_as_it_goes(norm):
    points = torch.tensor([[0.25, 0.5, 1.0, 0.75]])
    normal = torch.tensor([[2.0, -1.0, 0.0, -1e-6]])
    moves = move_onto_plane(points, normal, torch.tensor([9.0]), norm)
    assert moves.tolist() == [[-0.25, 0.5, 0.0, 0.25]]
    moves = move_onto_plane(points, normal, torch.tensor([-9.0]), norm)
    assert moves.tolist() == [[0.75, -0.5, 0.0, -0.75]]


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_stays_where_it_is_on_its_plane_or_has_none(norm):
    points = torch.rand(2, 6)
    normal = torch.stack([torch.randn(6), torch.zeros(6)])
    assert (move_onto_plane(points, normal, torch.tensor([0.0, 3.0]), norm) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_the_planes_scale_changes_nothing(norm, scale):
    points, normal, excess = problem(6, 20, dtype=torch.float32)
    wanted = move_onto_plane(points, normal, excess, norm)
    torch.testing.assert_close(move_onto_plane(points, normal * scale, excess * scale, norm), wanted)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.5, 1.0, 1.25])
def test_weights_of_all_sizes_lead_towards_the_plane_and_stay_in_the_box(norm, share):
    # at a share of 1 all that can move must move all the way: rounding alone says whether something is left
    points = torch.rand(4000, 6) * (torch.rand(4000, 6) < 0.8)
    normal = 10.0 ** torch.randint(-44, 5, (4000, 6))
    normal[:, :3] = torch.rand(4000, 3) + 0.5
    farthest = (normal.double() * points.double()).sum(1)
    moves = move_onto_plane(points, normal, (share * farthest).float(), norm)
    assert moves.isfinite().all()
    assert (moves <= 0).all()
    assert (points + moves >= 0).all()
    went = -(normal.double() * moves.double()).sum(1)
    assert ((went - min(share, 1) * farthest).abs() <= 2e-6 * normal.amax(1)).all()
