"""The regions of the world in which places are laid out, as one table.

Probabilities and mean numbers have no unit; a pair is the range of a uniform draw; longer tuples
are the values of which one is drawn, all equally likely.
"""

from dataclasses import dataclass

from training.simulation.place import Ground


@dataclass(frozen=True)
class RegionTraits:
    """What the places of a region have in common; the defaults are those of most regions."""

    share: float                            # of all places
    # Roads.
    grade: str                              # of the main road, as in ``Road``
    other_grade: str = 'main'               # of the main road in some places
    other_grades: float = 0.0               # in how many
    side_roads: float = 1.6                 # mean number
    side_grades: tuple[str, ...] = ('local', 'local', 'local', 'main')
    parallel_road: float = 0.0              # probability of a second road beside the main one
    dead_ends: float = 0.0                  # share of the side roads
    local_half_m: tuple[float, float] = (3.0, 4.5)  # half the width of local roads
    wide_streets: float = 0.0               # share of main roads with four lanes
    left_hand: float = 0.0                  # probability of traffic on the left
    corner_m: float = 6.5                   # radius of kerbs at junctions
    unpaved: float = 0.0                    # share of rural roads
    gutters: bool = True
    crossings: tuple[float, float, float] = (0.7, 0.15, 0.15)  # none, bars, lines
    signals: float = 0.0
    # Beside the carriageway.
    kerb_m: tuple[float, ...] = (0.18,)     # width, 0 without kerb
    no_verge: float = 0.0
    verge_m: tuple[float, float] = (1.0, 3.0)
    verge_kinds: tuple[float, float, float, float] = (0.7, 0.2, 0.05, 0.05)
    #                                         of lawn, rough grass, soil, gravel
    no_walk: float = 0.05                   # share of the sides without pavement
    walk_m: tuple[float, float] = (1.2, 1.8)
    poles: float = 0.2
    street_trees: float = 0.5
    street_tree_m: tuple[float, float] = (5.0, 14.0)
    # Land and what stands on it.
    is_open: bool = False                   # open country: no lamps, no pavements
    is_dense: bool = False                  # blocks at the pavement's edge
    base: Ground = Ground.LAWN
    patches: int = 6
    patch_kinds: tuple[Ground, ...] = (Ground.ROUGH, Ground.LAWN, Ground.SOIL, Ground.BED)
    bank: tuple[float, float] = (-0.12, 0.2)  # slope beside the road, where there is one
    frontage: str = 'houses'                # houses, farms, country, blocks, shops
    lot_m: tuple[float, float] = (12.0, 26.0)
    setback_m: tuple[float, float] = (4.0, 13.0)
    house_depth_m: tuple[float, float] = (7.0, 12.0)
    house_storeys: tuple[int, ...] = (1, 1, 2)
    gables_to_street: float = 0.0
    terraced: bool = False                  # houses from one side of the lot to the other
    drives: float = 0.85                    # share of the lots
    fenced: float = 0.15
    lot_trees: tuple[float, float] = (0.3, 2.5)
    block_storeys: tuple[int, int] = (2, 9)
    other_buildings: tuple[int, ...] = (0, 25, 60)    # tried where there is room
    other_trees: tuple[int, ...] | None = None        # None: by ``lot_trees``
    surroundings: int = 70                  # groups of trees and houses beyond the place
    far_storeys: tuple[int, int] = (1, 3)
    # What moves.
    people: float = 2.0
    trucks: float = 0.03                    # share of the vehicles


REGIONS = {
    'us_suburb': RegionTraits(
        0.16, 'local', other_grades=0.3, parallel_road=0.5, dead_ends=0.15,
        local_half_m=(3.3, 5.8), kerb_m=(0.0, 0.18, 0.18, 0.3), no_verge=0.2, verge_m=(0.8, 4.0),
        no_walk=0.3, walk_m=(1.1, 1.8), poles=0.6),
    # Older suburbs: narrow deep houses under tall trees.
    'old_suburb': RegionTraits(
        0.12, 'local', side_roads=1.8, parallel_road=0.5, local_half_m=(3.4, 5.6), corner_m=5.0,
        kerb_m=(0.15, 0.3), walk_m=(1.2, 1.7), poles=0.7, street_trees=0.85,
        street_tree_m=(8.0, 20.0), lot_m=(9.0, 16.0), setback_m=(4.0, 9.0),
        house_depth_m=(9.0, 16.0), house_storeys=(1, 2, 2), gables_to_street=0.6,
        lot_trees=(1.0, 6.0)),
    'au_suburb': RegionTraits(
        0.12, 'local', other_grades=0.3, side_roads=1.5, parallel_road=0.5, dead_ends=0.15,
        local_half_m=(3.0, 5.0), left_hand=1.0, kerb_m=(0.15, 0.35), verge_m=(1.5, 5.5),
        verge_kinds=(0.55, 0.35, 0.1, 0.0), no_walk=0.5, walk_m=(1.2, 1.4), poles=0.5),
    'uk_town': RegionTraits(
        0.08, 'local', other_grades=0.3, side_roads=1.8, parallel_road=0.5,
        local_half_m=(2.6, 4.4), left_hand=1.0, corner_m=5.0, gutters=False, kerb_m=(0.15,),
        no_verge=0.8, verge_m=(1.4, 1.6), walk_m=(1.4, 2.8), street_trees=0.35,
        lot_m=(6.0, 14.0), setback_m=(1.0, 7.0), house_storeys=(2,), terraced=True, drives=0.35,
        fenced=0.7, people=6.0),
    'city': RegionTraits(
        0.09, 'main', side_grades=('local', 'local', 'main', 'main', 'main'), parallel_road=0.5,
        local_half_m=(2.8, 5.5), wide_streets=0.25, left_hand=0.4, corner_m=5.0,
        crossings=(0.2, 0.5, 0.3), signals=0.7, no_verge=0.8, verge_m=(1.0, 1.4),
        walk_m=(2.5, 5.0), street_trees=0.4, is_dense=True, base=Ground.PAVING, patches=8,
        patch_kinds=(Ground.DRIVE, Ground.LAWN, Ground.CONCRETE, Ground.GRAVEL),
        frontage='blocks', other_buildings=(60,), other_trees=(40,), surroundings=90,
        far_storeys=(2, 8), people=14.0),
    # High buildings, wide streets, deep shadows.
    'downtown': RegionTraits(
        0.08, 'arterial', other_grades=0.3,
        side_grades=('local', 'local', 'main', 'main', 'main'), parallel_road=0.5,
        wide_streets=0.25, left_hand=0.4, crossings=(0.1, 0.5, 0.4), signals=0.7, no_verge=0.6,
        verge_m=(1.3, 1.7), walk_m=(2.0, 6.0), is_dense=True, base=Ground.PAVING, patches=8,
        patch_kinds=(Ground.DRIVE, Ground.CONCRETE, Ground.LAWN), frontage='blocks',
        block_storeys=(4, 22), other_buildings=(60,), other_trees=(40,), surroundings=90,
        far_storeys=(4, 20), people=20.0, trucks=0.2),
    'arterial': RegionTraits(
        0.10, 'arterial', side_roads=1.2, left_hand=0.4, corner_m=9.0, crossings=(0.3, 0.4, 0.3),
        signals=0.7, no_verge=0.5, verge_m=(1.0, 3.5), no_walk=0.3, walk_m=(1.4, 2.4),
        base=Ground.ROUGH, frontage='shops', other_buildings=(20,), other_trees=(70,)),
    'rural': RegionTraits(
        0.08, 'rural', other_grade='highway', other_grades=0.15, side_roads=0.5,
        side_grades=('rural',), left_hand=0.4, corner_m=9.0, unpaved=0.15, gutters=False,
        kerb_m=(0.0,), verge_m=(3.0, 3.0), verge_kinds=(0.15, 0.5, 0.15, 0.2), walk_m=(0.0, 0.0),
        poles=0.5, street_trees=0.0, is_open=True, base=Ground.ROUGH, patches=9,
        patch_kinds=(Ground.CROP, Ground.CROP, Ground.ROUGH, Ground.SOIL, Ground.LAWN),
        frontage='farms', other_buildings=(0,), other_trees=(15, 60, 200), surroundings=25),
    # Roads with shoulders and edge lines between woods, meadows and houses on wide lots.
    'country': RegionTraits(
        0.12, 'country', other_grade='highway', other_grades=0.25, side_roads=0.4,
        side_grades=('rural',), corner_m=11.0, gutters=False, kerb_m=(0.0,), verge_m=(3.0, 3.0),
        verge_kinds=(0.25, 0.4, 0.05, 0.3), walk_m=(0.0, 0.0), poles=0.4, street_trees=0.0,
        is_open=True, base=Ground.ROUGH, bank=(-0.4, 0.6), frontage='country',
        other_buildings=(0,), other_trees=(10, 40, 100), surroundings=60),
    'industrial': RegionTraits(
        0.05, 'main', side_roads=1.2, local_half_m=(3.5, 6.0), left_hand=0.4, corner_m=9.0,
        gutters=False, kerb_m=(0.0, 0.18), no_verge=0.5, verge_m=(1.0, 4.0), no_walk=0.4,
        base=Ground.DRIVE, patches=10,
        patch_kinds=(Ground.CONCRETE, Ground.DRIVE, Ground.GRAVEL, Ground.ROUGH),
        frontage='shops', other_buildings=(20,), other_trees=(40,)),
}
