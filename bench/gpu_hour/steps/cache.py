"""Copies the tuning cache, which has one file per decision, into one file: OUTPUT/tuning-cache.json."""

import json
import os
from pathlib import Path

from pypeft_fast import _tuning

from .. import found


def main():
    cache = _tuning.folder()
    files = {path.name: json.loads(path.read_text()) for path in sorted(cache.glob("*.json"))}
    target = Path(os.environ["PYPEFT_FAST_CACHE"]).parent / "tuning-cache.json"
    found.write_whole(target, json.dumps(files, indent=1) + "\n")
    found.keep(files=len(files), line=f"{len(files)} decisions in {target.name}")


if __name__ == "__main__":
    main()
