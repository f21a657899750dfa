"""Every loss against a float64 loop written from its formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.losses import (
    CrossViewLoss,
    global_triplet_loss,
    local_triplet_loss,
    LossConfig,
    safa_triplet_loss,
)

GAMMA, SIGMA_M, HOLE_M, RADIUS_M = 10.0, 4.0, 2.5, 30.0


def problem(tiles=40, images=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = {'generator': generator, 'dtype': torch.float64}
    satellite = F.normalize(torch.randn(tiles, 16, **normal), dim=1)
    ground = F.normalize(torch.randn(images, 16, **normal), dim=1)
    distance = torch.rand(tiles, images, generator=generator, dtype=torch.float64) * 45.0
    return satellite, ground, distance.argmin(0), distance


def triplets_by_loop(case, weight, counted, scale=lambda metres: 1.0, epsilon=0.001):
    """Half the mean of w softplus(gamma s (p - D)) over counted pairs that are not positive."""
    satellite, ground, positive, distance = (x.numpy() for x in case)

    def descriptor(i, j):
        return 2.0 - 2.0 * float(satellite[i] @ ground[j])

    sums, counts = [0.0, 0.0], [0, 0]
    for j in range(len(ground)):
        right = descriptor(positive[j], j)
        for side, pairs in enumerate((
                [(i, j) for i in range(len(satellite))],
                [(positive[j], k) for k in range(len(ground))])):
            for i, k in pairs:
                metres = distance[i, k]
                if counted(metres) and positive[k] != i:
                    margin = GAMMA * scale(metres) * (right - descriptor(i, k))
                    sums[side] += weight(metres) * math.log(1.0 + math.exp(margin))
                    counts[side] += 1
    return 0.5 * sum(total / (count + epsilon) for total, count in zip(sums, counts))


@pytest.mark.parametrize('power', [1, 2])
@pytest.mark.parametrize('hole_m', [HOLE_M, 0.0])
def test_the_local_loss_equals_the_loop(power, hole_m):
    case = problem()
    loss = local_triplet_loss(*case, GAMMA, SIGMA_M, hole_m, RADIUS_M, power)
    expected = triplets_by_loop(
        case, lambda metres: 1.0 - math.exp(-(metres ** power) ** 2 / (2 * SIGMA_M ** 2)),
        lambda metres: hole_m <= metres <= RADIUS_M)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-12)


def test_the_global_loss_equals_the_loop():
    case = problem()
    expected = triplets_by_loop(case, lambda metres: 1.0, lambda metres: True)
    np.testing.assert_allclose(float(global_triplet_loss(*case, GAMMA)), expected, rtol=1e-12)


def test_safas_loss_equals_the_loop():
    case = problem()
    expected = triplets_by_loop(case, lambda metres: 1.0, lambda metres: True,
                                lambda metres: float(metres >= 25.0), epsilon=0.0)
    np.testing.assert_allclose(float(safa_triplet_loss(*case, GAMMA)), expected, rtol=1e-12)


def test_in_a_paper_batch_empty_ground_images_are_negatives_for_others_only():
    """Six pairs on the diagonal, the last two without a ground image; method: both masks."""
    satellite, ground, _, distance = problem(6, 6, seed=3)
    distance = distance + 5.0 - distance.diagonal().diag()
    known = torch.tensor([True, True, True, True, False, False])
    loss = local_triplet_loss(
        satellite, ground[known], torch.arange(6)[known], distance[:, known], GAMMA, SIGMA_M,
        5.0, RADIUS_M)
    total, halves = 2.0 - 2.0 * satellite @ ground.T, []
    for side in ('g2s', 's2g'):
        top = bottom = 0.0
        for i in range(6):
            for j in range(6):
                inside = i != j and 5.0 <= distance[i, j] <= RADIUS_M
                if inside and known[j] and (side == 'g2s' or known[i]):
                    own = total[j, j] if side == 'g2s' else total[i, i]
                    weight = 1.0 - math.exp(-float(distance[i, j]) ** 2 / (2 * SIGMA_M ** 2))
                    top += weight * math.log1p(math.exp(GAMMA * float(own - total[i, j])))
                    bottom += 1
        halves.append(top / (bottom + 0.001))
    np.testing.assert_allclose(float(loss), sum(halves) / 2, rtol=1e-12)


@pytest.mark.parametrize('distance_power, metres, weight', [
    (1, 5.0, 0.118), (1, 10.0, 0.393), (1, 20.0, 0.865), (2, 5.0, 0.393), (2, 7.5, 0.920)])
def test_the_weights_are_those_of_the_papers(distance_power, metres, weight):
    """One tile competes for one image at equal descriptor distance: log 2 times its weight."""
    satellite = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    ground = satellite[:1]
    loss = local_triplet_loss(
        satellite, ground, torch.tensor([0]), torch.tensor([[0.0], [metres]]).double(), GAMMA,
        10.0 if distance_power == 1 else 25.0, 5.0, 100.0, distance_power)
    assert float(loss) * 2 * 1.001 / math.log(2) == pytest.approx(weight, abs=5e-4)


def test_pairs_in_the_hole_and_beyond_the_radius_do_not_count():
    satellite, ground, positive, distance = problem()
    case, settings = (satellite, ground, positive, distance), (GAMMA, SIGMA_M, HOLE_M, RADIUS_M)
    loss = local_triplet_loss(*case, *settings)
    idle = (distance < HOLE_M) | (distance > RADIUS_M)
    idle[positive, torch.arange(len(positive))] = False
    alone = idle.all(1)  # tiles that no image competes with
    alone[positive] = False
    satellite[alone] = -satellite[alone]
    same = local_triplet_loss(*case, *settings)
    assert float(same) == float(loss)
    active = ~idle.all(1)
    active[positive] = False
    satellite[active] = -satellite[active]
    other = local_triplet_loss(*case, *settings)
    assert float(other) != float(loss)


@pytest.mark.parametrize('kind', CrossViewLoss.KINDS)
def test_every_loss_is_finite_for_the_worst_descriptors(kind):
    satellite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    ground = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    distance = torch.tensor([[0.0, 40.0], [40.0, 0.0], [8.0, 8.0]])
    criterion = CrossViewLoss(LossConfig(kind, gamma=1000.0))
    loss = criterion(satellite, ground, torch.tensor([0, 1]), distance)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(ground.grad).all()


@pytest.mark.parametrize('kind', CrossViewLoss.KINDS)
def test_every_loss_teaches_the_right_answer(kind):
    """Descent on free descriptors brings each image to its own tile."""
    satellite, ground, _, _ = problem(6, 6, seed=1)
    places = torch.arange(6)[:, None] * 12.0
    distance = (places - places.T).abs().double()
    ground = ground.clone().requires_grad_()
    criterion = CrossViewLoss(LossConfig(kind, sigma_m=6.0, near_m=10.0)).double()
    optimizer = torch.optim.Adam([ground], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        criterion(satellite, F.normalize(ground, dim=1), torch.arange(6), distance).backward()
        optimizer.step()
    assert ((satellite @ ground.T).argmax(0) == torch.arange(6)).all()


def test_a_batch_without_a_pair_that_counts_gives_zero():
    satellite, ground, positive, distance = problem(3, 3)
    ground.requires_grad_()
    loss = local_triplet_loss(
        satellite, ground, torch.arange(3), distance * 0.0, GAMMA, SIGMA_M, HOLE_M, RADIUS_M)
    loss.backward()
    assert loss.item() == 0.0 and not ground.grad.any()


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'margin'; expected one of local, global"):
        CrossViewLoss(LossConfig('margin'))
