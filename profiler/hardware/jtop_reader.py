"""What jetson-stats says, one JSON line for each of its updates. Run by jtop.py with the Python that has jetson-stats.

A program of its own, in a process of its own: nothing of card-profile is imported here, and jetson-stats nowhere else. Python 3.6
is enough (JetPack 4's).
"""

import importlib
import json
import os
import sys


def main(updates: int) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [
        path for path in sys.path if os.path.abspath(path or ".") != here
    ]  # the jtop.py beside us is another
    try:
        jtop = importlib.import_module("jtop").jtop
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    try:
        with jtop(interval=0.5) as service:
            for _ in range(updates):
                if not service.ok():
                    break
                power = service.power
                watts = {name: rail["power"] / 1e3 for name, rail in power.get("rail", {}).items() if "power" in rail}
                total = power.get("tot", {})
                if total.get("name") and "power" in total:
                    watts[total["name"]] = total["power"] / 1e3
                mode = getattr(service, "nvpmodel", None)
                said: dict[str, object] = {"rails_w": watts}
                if mode is not None:
                    said["power_mode"], said["power_mode_number"] = str(mode), mode.id
                print(json.dumps(said), flush=True)
    except Exception as error:  # its service speaks another version, or the user may not talk to it
        print(json.dumps({"failed": " ".join(str(getattr(error, "message", error)).split())}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
