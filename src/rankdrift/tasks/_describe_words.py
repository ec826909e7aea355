"""The vocabulary of the built-in task ``describe``: walking trails, their attributes and what one sees there.

The last phrases of ``NAMES``, ``STARTS`` and ``SIGHTS`` are met in validation only.
"""

from __future__ import annotations

from itertools import product

from rankdrift.tasks._phrases import phrases

PLACES = phrases("""
    Heron, Juniper, Saltmarsh, Old Quarry, Larkhill, Brackenfield, Copper Hill, Whitewater, Three Bridges,
    Foxglove, Windmill, Harrow, Kestrel, Mossdale, Long Acre, Silver Birch, Raven, Thornbury, Bishop's,
    Lower Glen, Sandstone, Millrace, Elderflower, Hollow Oak, Cuckoo, Slate, Peatland, Lantern, Northgate,
    Marigold, Stonecrop, Otter
""")
KINDS = phrases("Loop, Trail, Path, Ridge Walk, Circuit, Way")
NAMES = tuple(f"{place} {kind}" for place, kind in product(PLACES, KINDS))

LENGTHS = tuple(
    f"{kilometres} km" for kilometres in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 18, 21, 24)
)
EFFORTS = phrases("easy, gentle, moderate, steady, demanding, steep")
SURFACES = phrases("gravel, grass, sand, boardwalk, tarmac, bare rock, forest soil, cobbles")
SEASONS = phrases("spring, early summer, late summer, autumn, winter")
DOGS = ("welcome", "not allowed")
STARTS = phrases("""
    the village green, the railway station, the ferry pier, the stone chapel, the campsite,
    the north car park, the primary school, the visitor centre, the old toll house, the market square,
    the youth hostel, the sluice, the cattle grid, the war memorial, the bus stop at Lane End, the boathouse,
    the cider farm, the post office, the church hall, the fish market
""")
SIGHTS = phrases("""
    a ruined abbey, a heron colony, a disused mill, two waterfalls, a stone circle, an iron footbridge,
    a tarn, a lighthouse, a field of lavender, a medieval wall, a nature reserve, a working forge,
    a flock of rare sheep, a limestone cave, a row of beech trees, a Roman milestone, an orchard,
    a swing bridge, a canal lock, an ice house, a seal beach, a lime kiln, a walled garden, a fire tower
""")
