# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Operations that are taken back as a whole, and then say so in the error that was the reason."""

from __future__ import annotations

import typing as t

from .._core.errors import LifecycleError
from .._core.plan import Step


class Noting:
    """Steps whose failure is at hand when they are taken back, so that its hint can tell what became of the VM."""

    _failure: LifecycleError | None = None

    def _step(self, name: str, do: t.Callable[[], t.Mapping[str, t.Any] | None]) -> Step:
        def noted() -> t.Mapping[str, t.Any] | None:
            try:
                return do()
            except LifecycleError as exc:
                self._failure = exc
                raise

        return Step(name, noted)

    def _explain(self, what: str) -> None:
        """Add a sentence to the error of the step that failed."""
        if self._failure:
            self._failure.hint = f"{self._failure.hint} {what}".lstrip()
