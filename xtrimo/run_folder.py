"""The folder of a run of `fit`: what decides its outcome, the training itself, and how it came out.

OUT/settings.json   written first; another run's are refused
OUT/training/       see xtrimo/training.py
OUT/results.json    written last; a run that has it is finished
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtrimo.durable import differences, write_json
from xtrimo.errors import ConfigError
from xtrimo.training import main_rank

SETTINGS, TRAINING, RESULTS = "settings.json", "training", "results.json"


def claim(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make a folder this run's, or find it so; its results, if it is finished.

    A setting that is not written there came with a later version: it says nothing against going on.

    Raises:
        ConfigError: it is of a run with other settings.
    """
    path, ours = out / SETTINGS, json.loads(json.dumps(settings))
    if path.exists():
        theirs = json.loads(path.read_text("utf-8"))
        if changed := differences(theirs, {name: ours[name] for name in ours if name in theirs}):
            raise ConfigError(f"{out} is of a run with other settings ({'; '.join(changed)}); choose another --out")
    elif main_rank():
        write_json(path, ours)
    if not (out / RESULTS).exists():
        return None
    finished: dict[str, Any] = json.loads((out / RESULTS).read_text("utf-8"))
    return finished
