# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""cloud-init's NoCloud data: a small ISO image labelled ``cidata`` (cloud-init page "NoCloud datasource")."""

from __future__ import annotations

import hashlib
import io
import json
import typing as t
from dataclasses import dataclass, field

from .._core.errors import Unsupported


@dataclass(frozen=True)
class NoCloud:
    """What the guest is told at its first boot.

    :param user_data: As cloud-init takes it; empty means an empty ``#cloud-config``.
    :param network_config: As cloud-init takes it, or empty for none.
    :param meta_data: Values beside ``instance-id`` and ``local-hostname``.
    """

    user_data: str = ""
    network_config: str = ""
    meta_data: t.Mapping[str, t.Any] = field(default_factory=dict)

    def digest(self) -> str:
        """A hash that tells whether two are the same."""
        told = json.dumps([self.user_data, self.network_config, dict(self.meta_data)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def image(self, *, instance_id: str, hostname: str) -> bytes:
        """The ISO image, with Joliet and Rock Ridge names.

        :raises Unsupported: ``pycdlib`` is missing.
        """
        try:
            import pycdlib
        except ImportError as exc:
            raise Unsupported(
                "Failed to build cloud-init data: the Python library pycdlib is missing.",
                hint="Install it on the machine on which the module runs (package python3-pycdlib).",
            ) from exc
        # JSON is YAML, which is what cloud-init reads.
        meta = json.dumps({"instance-id": instance_id, "local-hostname": hostname, **self.meta_data}, sort_keys=True)
        files = {"meta-data": meta, "user-data": self.user_data or "#cloud-config\n"}
        if self.network_config:
            files["network-config"] = self.network_config
        iso = pycdlib.PyCdlib()
        iso.new(interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident="cidata")
        for name, text in files.items():
            body = text.encode()
            iso.add_fp(
                io.BytesIO(body),
                len(body),
                f"/{name.upper().replace('-', '_')}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        out = io.BytesIO()
        iso.write_fp(out)
        iso.close()
        return out.getvalue()
