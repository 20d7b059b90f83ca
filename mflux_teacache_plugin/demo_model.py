from collections.abc import Mapping
from typing import Any


def models() -> Mapping[str, Any]:
    return {}
