"""What tests share: bounded waiting, real mounts, programs, terminals."""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("mounts", "programs", "terminal", "waiting")))
