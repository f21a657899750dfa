"""The local loss against a float64 loop written from its formula."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from training.losses import local_triplet_loss

GAMMA, SIGMA_M, HOLE_M, RADIUS_M = 10.0, 4.0, 2.5, 30.0


def problem(tiles=40, images=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = {'generator': generator, 'dtype': torch.float64}
    satellite = F.normalize(torch.randn(tiles, 16, **normal), dim=1)
    ground = F.normalize(torch.randn(images, 16, **normal), dim=1)
    distance = torch.rand(tiles, images, generator=generator, dtype=torch.float64) * 45.0
    return satellite, ground, distance.argmin(0), distance


def by_loop(satellite, ground, positive, distance):
    satellite, ground, distance = (x.numpy() for x in (satellite, ground, distance))

    def descriptor(i, j):
        return 2.0 - 2.0 * float(satellite[i] @ ground[j])

    def term(own, other, metres):
        weight = 1.0 - math.exp(-metres ** 2 / (2 * SIGMA_M ** 2))
        return weight * math.log(1.0 + math.exp(GAMMA * (own - other)))

    sums, counts = [0.0, 0.0], [0, 0]
    for j in range(len(ground)):
        own = descriptor(positive[j], j)
        for i in range(len(satellite)):
            if HOLE_M <= distance[i, j] <= RADIUS_M:
                sums[0] += term(own, descriptor(i, j), distance[i, j])
                counts[0] += 1
        for i in range(len(ground)):
            metres = distance[positive[j], i]
            if HOLE_M <= metres <= RADIUS_M:
                sums[1] += term(own, descriptor(positive[j], i), metres)
                counts[1] += 1
    return 0.5 * (sums[0] / (counts[0] + 0.001) + sums[1] / (counts[1] + 0.001))


def test_the_local_loss_equals_the_loop():
    case = problem()
    loss = local_triplet_loss(*case, GAMMA, SIGMA_M, HOLE_M, RADIUS_M)
    np.testing.assert_allclose(float(loss), by_loop(*case), rtol=1e-12)


def test_pairs_in_the_hole_and_beyond_the_radius_do_not_count():
    satellite, ground, positive, distance = problem()
    case, tunables = (satellite, ground, positive, distance), (GAMMA, SIGMA_M, HOLE_M, RADIUS_M)
    loss = local_triplet_loss(*case, *tunables)
    idle = (distance < HOLE_M) | (distance > RADIUS_M)
    idle[positive, torch.arange(len(positive))] = False
    alone = idle.all(1)  # tiles that no image competes with
    alone[positive] = False
    satellite[alone] = -satellite[alone]
    same = local_triplet_loss(*case, *tunables)
    assert float(same) == float(loss)
    active = ~idle.all(1)
    active[positive] = False
    satellite[active] = -satellite[active]
    other = local_triplet_loss(*case, *tunables)
    assert float(other) != float(loss)


def test_the_local_loss_is_finite_for_the_worst_descriptors():
    satellite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    ground = torch.tensor([[-1.0, 0.0]], requires_grad=True)
    distance = torch.tensor([[0.0], [20.0]])
    loss = local_triplet_loss(
        satellite, ground, torch.tensor([0]), distance, 1000.0, SIGMA_M, HOLE_M, RADIUS_M)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(ground.grad).all()
