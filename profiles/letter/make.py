"""Make this folder's profiles: the letter's Tables I and II as a server and five devices.

    python profiles/letter/make.py [FOLDER]

Every figure, with its source or the reason why it was assumed, stands in ``solver/letter/fleet.py``: the toolkit makes the same
fleet itself where this folder is not at hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from profiler.store import save
from solver.letter.fleet import profiles

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for profile in profiles():
        save(profile, folder / f"{profile.name}.json")
