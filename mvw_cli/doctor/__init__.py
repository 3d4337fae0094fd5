"""`mvw doctor`'s work: facts of this machine and this installation, and what they mean.

`facts.py` looks, `machine.py` and `model.py` judge. Nothing here prints or changes anything, and
no weights are read.
"""

from mvw_cli.doctor.findings import Finding, worst
from mvw_cli.doctor.machine import check_machine

__all__ = ["Finding", "check_machine", "worst"]
