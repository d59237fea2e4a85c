"""What tests share: bounded waiting, real mounts, programs, terminals."""

import pytest

_ASSERTING = ("disks", "model", "mounts", "programs", "promises", "terminal", "waiting")
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _ASSERTING))
