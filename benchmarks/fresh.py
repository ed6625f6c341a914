"""Scripts of this folder in processes of their own, whose memory is theirs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def told_by(script: str, *options: str, variables: Mapping[str, str] | None = None) -> Any:
    """What a script of this folder prints as JSON, with these environment variables too; what it says of errors is shown."""
    command = [sys.executable, str(Path(__file__).parent / script), *options]
    surrounding = {**os.environ, **(variables or {})}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=surrounding).stdout)
