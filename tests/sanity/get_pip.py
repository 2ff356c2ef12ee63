# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ansible-test runs to put pip into its virtualenvs, in place of a script it would fetch from a host of its own.

tests/parts/sanity.sh copies it to where ansible-test keeps that script, together with the wheel of pip.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
(wheel,) = here.glob("pip-*.whl")

# The arguments are those of `pip install` and two options of the original script, which installs nothing unasked here.
options = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", "--find-links", str(here), *options]
sys.path.insert(0, str(wheel))
runpy.run_module("pip", run_name="__main__", alter_sys=True)
