"""One target under atheris (libFuzzer), guided by what of chatfs the inputs reach; for `python -m tests.fuzz`.

`python -m tests.fuzz.guided TARGET CORPUS [libFuzzer's options]`. It ends with status 77 when it has found something.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["store"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    check = TARGETS[sys.argv[1]].check
    atheris.Setup([sys.argv[0], *sys.argv[2:]], check)
    atheris.Fuzz()
