# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Images in OpenStack Glance (image API v2), through openstacksdk, which no other file imports.

An image that is being made carries a mark, :data:`UNVERIFIED`, which goes when Glance was seen to have what was sent:
Glance itself calls an image ``active`` whose upload ended early, when a proxy or an expired token made it look whole.
The mark tells which process set it, so the next one on this machine removes what a dead one left. Nothing is sent twice
into one image: Glance keeps it in a status of which only deletion leads out.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import platform
import re
import time
import typing as t

try:
    import keystoneauth1.exceptions
    import openstack.config
    import openstack.connection
    import openstack.exceptions
    import requests
except ImportError:  # told when a store is opened
    openstack = None

from .._core.errors import (
    Busy,
    Denied,
    Invalid,
    LifecycleError,
    NoSpace,
    NotFound,
    Refused,
    Unreachable,
    Unsupported,
)
from .._core.files import working
from .base import ACTIVE, Block, Content, Exposed, Image, NewImage, Spent, is_identifier, unchanged
from .bridge import Bridge
from .content import Hashes, hashed, verified
from .renewal import entry

Change = t.Mapping[str, t.Any]  # an operation of a JSON patch

SHA256 = "kvmops_sha256"
# A property that tells who is making the image, and a tag that it is found by.
UNVERIFIED = "kvmops_unverified"
_TAG = "kvmops-unverified"

# Seconds to connect, and of silence. A socket that is written to has the first. After the last byte of an upload,
# Glance may have to finish an object in a store of its own.
_TIMEOUT = (15, 60)
_UPLOAD_TIMEOUT = (30, 300)
# Seconds before each attempt to remove what a failed upload left: Glance may just be restarted.
_TAKE_BACK = (0, 1, 4, 10)
_TAKE_BACK_LIMIT = 60
# The status of an image that takes data. Seconds until Glance must have noticed that no more will come, and between two
# looks; it may not have begun at the first.
_TAKING = "saving"
_NOTICED = 5
_LOOK = 0.1
_QUIET = 3
_PIECE = 512 << 10
_CHUNK = 1 << 20
_PAGE = 500
# Which hashes are made of an upload: Glance's default, and ours.
_HASHES = ("sha256", "sha512")
_KNOWN_HASHES = frozenset({"blake2b", "sha1", "sha256", "sha384", "sha512", "sha3_256", "sha3_512"})
_HEX = re.compile(r"[0-9a-f]{64}")
# What the server may filter by; the rest is filtered here. Names with other characters may be taken for operators.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_FILTERS = frozenset({"backup_type", "base_image_ref", "image_type", "instance_uuid"})
# Attributes of the API's schema for images; all others are properties.
_ATTRIBUTES = frozenset(
    {
        *("id", "name", "status", "visibility", "size", "virtual_size", "min_disk", "min_ram", "protected"),
        *("checksum", "os_hash_algo", "os_hash_value", "os_hidden", "owner", "disk_format", "container_format"),
        *("created_at", "updated_at", "tags", "self", "file", "schema", "locations", "direct_url", "stores"),
    }
)
_WRITER = re.compile(r"(?P<pid>[0-9]{1,9}) (?P<since>[0-9]*) (?P<node>.*)")
_SECRET = re.compile(r"password|secret|token|passcode|credential", re.IGNORECASE)


class GlanceStore:
    """Implements :class:`.base.Store`.

    :param cloud: A name in a ``clouds.yaml``; else *auth* is needed.
    :param clouds_file: Where that is; else where openstacksdk looks for it.
    :param auth: What the authentication plugin *auth_type* needs: ``auth_url``, ``username`` …
    :param ca_cert: A file with certificates of authorities to trust.
    :param validate_certs: ``None`` leaves it to ``clouds.yaml``.
    :raises Unsupported: openstacksdk is missing.
    :raises Invalid: The options, or ``clouds.yaml``, cannot be meant.
    """

    kind = "glance"

    def __init__(
        self,
        *,
        cloud: str | None = None,
        clouds_file: str | None = None,
        auth: t.Mapping[str, t.Any] | None = None,
        auth_type: str | None = None,
        region_name: str | None = None,
        interface: str | None = None,
        ca_cert: str | None = None,
        validate_certs: bool | None = None,
    ) -> None:
        if openstack is None:
            raise Unsupported(
                "Failed to open the image store: the Python library openstacksdk is missing.",
                hint="Install it on the machine on which the module runs (package python3-openstacksdk).",
            )
        for path in filter(None, (clouds_file, ca_cert)):
            if not os.access(path, os.R_OK):
                raise NotFound(
                    f"Failed to open the image store: {path} cannot be read on the machine on which the module runs."
                )
        self.place = f"cloud {cloud}" if cloud else str((auth or {}).get("auth_url", ""))
        self._secrets: list[str] = _secrets(auth or {})
        wanted = {
            "auth": dict(auth) if auth else None,
            "auth_type": auth_type,
            "region_name": region_name,
            "interface": interface,
            "cacert": ca_cert,
            "verify": validate_certs,
            "api_timeout": _TIMEOUT[1],
        }
        with self.doing("open the image store"), _named_errors():
            config = openstack.config.OpenStackConfig(
                config_files=[clouds_file] if clouds_file else None,
                load_yaml_config=cloud is not None,
                load_envvars=cloud is not None and clouds_file is None,
            )
            region = config.get_one(cloud=cloud, **{key: value for key, value in wanted.items() if value is not None})
            self._secrets += _secrets(region.config.get("auth") or {})
            self._region = region
            self._connection = openstack.connection.Connection(config=region)
            self._endpoint = str(self._connection.image.get_endpoint()).rstrip("/")
            self.place = f"{self._endpoint} ({self._project()})"

    def _project(self) -> str:
        ask = getattr(self._connection.session.auth, "get_access", None)
        access = ask(self._connection.session) if ask else None
        return str(access.project_name or access.project_id) if access else "no project"

    # ---- looking

    def find(self, *, name: str | None = None, properties: t.Mapping[str, str] | None = None) -> list[Image]:
        """See :class:`.base.Store`."""
        wanted = dict(properties or {})
        params: dict[str, t.Any] = {"status": ACTIVE, "limit": _PAGE, "sort_key": "created_at", "sort_dir": "asc"}
        if name is not None and _PLAIN.fullmatch(name):
            params["name"] = name
        params.update({key: text for key, text in wanted.items() if key in _FILTERS and _PLAIN.fullmatch(text)})
        found = []
        while True:
            page = self._json("look for images", "GET", "/images", params=params, status_code_retries=2)
            images = [self._image(record) for record in page["images"]]
            found += [
                image
                for image in images
                if image.status == ACTIVE
                and (name is None or image.name == name)
                and all(image.properties.get(key) == text for key, text in wanted.items())
            ]
            if "next" not in page or not images:
                return sorted(found, key=lambda image: (image.created_at, image.id))
            params["marker"] = images[-1].id

    def get(self, image_id: str) -> Image | None:
        """See :class:`.base.Store`."""
        if not is_identifier(image_id):
            return None
        response = self._send(f"look at image {image_id}", "GET", f"/images/{image_id}", status_code_retries=2)
        if response.status_code == 404:
            return None
        return self._image(self._answer(f"look at image {image_id}", response))

    def _image(self, record: t.Mapping[str, t.Any]) -> Image:
        told = {key: str(value) for key, value in record.items() if key not in _ATTRIBUTES and value is not None}
        digests = {}
        if _HEX.fullmatch(told.pop(SHA256, "")):
            digests["sha256"] = str(record[SHA256])
        if record.get("os_hash_value"):
            digests[str(record["os_hash_algo"])] = str(record["os_hash_value"])
        elif record.get("checksum"):  # of a Glance before Rocky
            digests["md5"] = str(record["checksum"])
        unfinished = told.pop(UNVERIFIED, None)
        status = str(record["status"])
        return Image(
            id=str(record["id"]),
            name=str(record.get("name") or ""),
            status="unverified" if unfinished and status == ACTIVE else status,
            size=int(record.get("size") or 0),
            disk_format=str(record.get("disk_format") or ""),
            digests=digests,
            properties=told,
            protected=bool(record.get("protected")),
            min_disk=int(record.get("min_disk") or 0),
            min_ram=int(record.get("min_ram") or 0),
            created_at=str(record.get("created_at") or ""),
            where=f"{self._endpoint}/images/{record['id']}",
        )

    # ---- reading

    @contextlib.contextmanager
    def open(self, image: Image) -> t.Iterator[Content]:
        """See :class:`.base.Store`."""
        called = f"Image {image.name} ({image.where})"
        what = f"read image {image.name} ({image.where})"
        if image.status != ACTIVE:
            raise Invalid(f"{called} is {image.status} and cannot be read.")
        digests = {name: value for name, value in image.digests.items() if name in _KNOWN_HASHES | {"md5"}}
        if not digests:
            raise Unsupported(f"{called} cannot be verified: its hashes are {', '.join(image.digests) or 'missing'}.")
        headers = {"Accept": "application/octet-stream", "Accept-Encoding": "identity"}
        response = self._send(what, "GET", f"/images/{image.id}/file", headers=headers, stream=True)
        with contextlib.closing(response):
            if response.status_code == 204:
                raise Invalid(f"{called} has no content.")
            self._check(what, response)
            yield _Download(self, response, image.size, digests, called)

    def expose(self, image: Image, directory: str) -> Exposed:
        """See :class:`.base.Store`. It is a bridge (:mod:`.bridge`), which begins with the token of now."""
        there = unchanged(self, image)
        bridge = self._bridge(image, directory)
        with self.doing(f"read image {image.name} ({image.where}) in place"), _named_errors():
            verify, cert = self._region.get_requests_verify_args()
            if verify is True:  # what requests would trust, which is not always what the system trusts
                verify = os.environ.get("REQUESTS_CA_BUNDLE") or requests.certs.where()
            if isinstance(verify, str):
                verify = os.path.abspath(verify)
            certs = [cert] if isinstance(cert, str) else cert
            settings = {
                **entry(self._connection.session),
                "url": f"{there.where}/file",
                "size": there.size,
                "verify": verify,
                "cert": [os.path.abspath(path) for path in certs] if certs else None,
                "auth_type": self._region.config["auth_type"],
                "auth": self._region.config["auth"],
            }
        bridge.open(settings)
        return Exposed("nbd", bridge.socket)

    def withdraw(self, image: Image, directory: str) -> None:
        """See :class:`.base.Store`."""
        self._bridge(image, directory).close()

    @staticmethod
    def _bridge(image: Image, directory: str) -> Bridge:
        return Bridge(image.id, directory, f"image {image.name} ({image.where})")

    # ---- changing

    def put(self, new: NewImage, content: Content) -> Image:
        """See :class:`.base.Store`. When Glance does not answer any more, what cannot be removed is told."""
        if not is_identifier(new.id):
            raise Invalid(f"Failed to store image {new.name}: {new.id!r} is no UUID in lower case.")
        self._sweep()
        try:
            return self._create(new, content)
        except _NotBegun as exc:
            raise exc.reason from None
        except BaseException as exc:
            self._take_back(new.id, exc)
            raise

    def _create(self, new: NewImage, content: Content) -> Image:
        what = f"store image {new.name} in {self.place}"
        record = {
            **new.properties,
            UNVERIFIED: _writer(os.getpid()),
            "tags": [_TAG],
            "id": new.id,
            "name": new.name,
            "disk_format": new.disk_format,
            "container_format": "bare",
            "visibility": "private",
            "min_disk": new.min_disk,
            "min_ram": new.min_ram,
        }
        response = self._send(what, "POST", "/images", json=record)
        if response.status_code == 409:
            there = self.get(new.id)
            if there is None:
                raise _NotBegun(Spent(f"Glance had an image {new.id}."))
            raise _NotBegun(
                Invalid(
                    f"Failed to store image {new.name}: {self.place} has an image {new.id} already,"
                    f" which is {there.status}."
                )
            )
        if 400 <= response.status_code < 500:
            raise _NotBegun(self._problem(what, response))
        self._check(what, response)
        with Hashes(_HASHES) as hashes:
            self._upload(what, new.id, _Body(content, hashes, what))
            sent = hashes.told()
        image = self.get(new.id)
        if image is None:
            raise NotFound(f"Failed to {what}: it was deleted meanwhile.")
        self._compare(what, image, len(content), sent)
        changes: list[Change] = [
            {"op": "remove", "path": f"/{UNVERIFIED}"},
            {"op": "replace", "path": "/tags", "value": []},
            {"op": "add", "path": f"/{SHA256}", "value": sent["sha256"]},
            {"op": "replace", "path": "/protected", "value": new.protected},
        ]
        return self._image(self._patch(what, new.id, changes))

    def _sweep(self) -> None:
        """Remove what processes of this machine left that are dead."""
        with contextlib.suppress(LifecycleError):  # it is not what we are here for
            params = {"tag": _TAG, "limit": _PAGE}
            for record in self._json("look for images", "GET", "/images", params=params)["images"]:
                found = _WRITER.fullmatch(str(record.get(UNVERIFIED)))
                if found and found["node"] == platform.node() and _writer(int(found["pid"])) != found[0]:
                    self.delete(str(record["id"]))

    def _upload(self, what: str, image_id: str, body: _Body) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept": "",
            "X-OpenStack-Image-Size": str(len(body)),
        }
        try:
            response = self._send(
                what, "PUT", f"/images/{image_id}/file", data=body, headers=headers, timeout=_UPLOAD_TIMEOUT
            )
        except LifecycleError:
            if body.error:  # which the libraries may have taken for one of the connection
                raise body.error from None
            raise
        self._check(what, response)

    @staticmethod
    def _compare(what: str, image: Image, size: int, sent: t.Mapping[str, str]) -> None:
        if image.status != "unverified":
            raise LifecycleError(f"Failed to {what}: after the upload its status is {image.status}.")
        if image.size != size:
            raise LifecycleError(
                f"Failed to {what}: {size} bytes were sent, and {image.size} came in.", hint="Run the task again."
            )
        if not set(image.digests) & set(sent):
            raise Unsupported(
                f"Failed to {what}: Glance tells a hash by {', '.join(image.digests) or 'no algorithm'}, which is not"
                " compared with what was sent.",
                hint="Let its hashing_algorithm be sha512 or sha256.",
            )
        if not image.same_content(size, sent):
            raise LifecycleError(
                f"Failed to {what}: the hash of what came in is not that of what was sent.", hint="Run the task again."
            )

    def _take_back(self, image_id: str, reason: BaseException) -> None:
        """Remove what a failed upload left; when that fails as well, say so in *reason*."""
        end = time.monotonic() + _TAKE_BACK_LIMIT
        self._let_it_notice(image_id)
        for pause in _TAKE_BACK:
            if time.monotonic() > end:
                break
            time.sleep(pause)
            with contextlib.suppress(LifecycleError):
                try:
                    self.delete(image_id)
                except Refused:  # the last change was made, and its answer lost
                    unprotected: Change = {"op": "replace", "path": "/protected", "value": False}
                    self._patch("take back an upload", image_id, [unprotected])
                    self.delete(image_id)
                return
        if isinstance(reason, LifecycleError):
            left = f"The unfinished image {image_id} may be left in {self.place}: delete it."
            reason.hint = f"{reason.hint} {left}".strip()
            reason.details["left"] = image_id

    def _let_it_notice(self, image_id: str) -> None:
        """Wait until Glance knows that an upload has ended: of an image that is deleted while it still takes data, it
        keeps the file for ever. A worker of it that was killed never knows."""
        end = time.monotonic() + _NOTICED
        quiet = 0
        with contextlib.suppress(LifecycleError):
            while quiet < _QUIET and time.monotonic() < end:
                there = self.get(image_id)
                if there is None:
                    return
                quiet = 0 if there.status == _TAKING else quiet + 1
                time.sleep(_LOOK)

    def update(
        self,
        image: Image,
        *,
        properties: t.Mapping[str, str | None] | None = None,
        name: str | None = None,
        protected: bool | None = None,
        min_disk: int | None = None,
        min_ram: int | None = None,
    ) -> Image:
        """See :class:`.base.Store`."""
        what = f"change image {image.name} ({image.where})"
        there = self.get(image.id)
        if there is None:
            raise NotFound(f"Failed to {what}: it is gone.")
        told = {"name": name, "protected": protected, "min_disk": min_disk, "min_ram": min_ram}
        changes: list[Change] = [
            {"op": "replace", "path": f"/{key}", "value": value} for key, value in told.items() if value is not None
        ]
        for key, text in (properties or {}).items():
            path = "/" + key.replace("~", "~0").replace("/", "~1")
            if text is not None:
                changes.append({"op": "replace" if key in there.properties else "add", "path": path, "value": text})
            elif key in there.properties:
                changes.append({"op": "remove", "path": path})
        return self._image(self._patch(what, image.id, changes)) if changes else there

    def _patch(self, what: str, image_id: str, changes: t.Sequence[Change]) -> t.Any:
        kind = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
        return self._json(what, "PATCH", f"/images/{image_id}", data=json.dumps(changes), headers=kind)

    def delete(self, image_id: str) -> bool:
        """See :class:`.base.Store`."""
        if not is_identifier(image_id):
            return False
        what = f"delete image {image_id} from {self.place}"
        response = self._send(what, "DELETE", f"/images/{image_id}")
        if response.status_code == 404:
            return False
        if response.status_code == 403 and self._is_protected(image_id):
            raise Refused(
                f"Image {image_id} in {self.place} is protected and cannot be deleted.",
                hint="Say protected: false first.",
            )
        self._check(what, response)
        return True

    def _is_protected(self, image_id: str) -> bool:
        image = self.get(image_id)
        return image is not None and image.protected

    def close(self) -> None:
        """See :class:`.base.Store`."""
        self._connection.close()

    # ---- asking

    @contextlib.contextmanager
    def doing(self, what: str) -> t.Iterator[None]:
        """Translate the libraries' errors in the body."""
        try:
            yield
        except keystoneauth1.exceptions.Unauthorized as exc:
            raise Denied(
                f"Failed to {what}: {self._text(exc)}", hint="Look after the credentials of the image store."
            ) from exc
        except keystoneauth1.exceptions.SSLError as exc:
            raise Unreachable(
                f"Failed to {what}: {self._text(exc)}", hint="Give the authority's certificate with ca_cert."
            ) from exc
        except (keystoneauth1.exceptions.ConnectionError, requests.RequestException) as exc:
            raise Unreachable(f"Failed to {what}: {self._text(exc)}") from exc
        except keystoneauth1.exceptions.HttpError as exc:
            kind = Unreachable if exc.http_status >= 500 else Denied
            raise kind(f"Failed to {what}: {self._text(exc)}") from exc
        except (
            keystoneauth1.exceptions.DiscoveryFailure,
            openstack.exceptions.ServiceDiscoveryException,
            openstack.exceptions.NotSupported,  # so a service is called that does not answer when it is first asked
        ) as exc:
            raise Unreachable(f"Failed to {what}: {self._text(exc)}") from exc
        except (keystoneauth1.exceptions.ClientException, openstack.exceptions.SDKException) as exc:
            raise Invalid(
                f"Failed to {what}: {self._text(exc)}", hint="Look after the options of the image store."
            ) from exc

    def _text(self, exc: Exception) -> str:
        """What an exception says, in one sentence without secrets."""
        said = " ".join(str(exc).split())[:500].rstrip(".") or type(exc).__name__
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return f"{said}."

    def _send(self, what: str, method: str, url: str, **options: t.Any) -> t.Any:
        """One request, and its answer whatever its status.

        :raises Unreachable: There is none.
        """
        options = {"timeout": _TIMEOUT, "connect_retries": 0, "status_code_retries": 0, **options}
        with self.doing(what):
            return self._connection.image.request(url, method, **options)

    def _json(self, what: str, method: str, url: str, **options: t.Any) -> t.Any:
        return self._answer(what, self._send(what, method, url, **options))

    def _answer(self, what: str, response: t.Any) -> t.Any:
        self._check(what, response)
        try:
            return response.json()
        except ValueError as exc:
            raise Unreachable(f"Failed to {what}: the answer is no JSON.") from exc

    def _check(self, what: str, response: t.Any) -> None:
        if not 200 <= response.status_code < 300:
            raise self._problem(what, response)

    def _problem(self, what: str, response: t.Any) -> LifecycleError:
        """The error that an answer stands for."""
        status = response.status_code
        kinds: dict[int, type[LifecycleError]] = {
            401: Denied,
            403: Denied,
            404: NotFound,
            409: Busy,
            410: NotFound,
            413: NoSpace,
            507: NoSpace,
        }
        kind = kinds.get(status, Invalid if 400 <= status < 500 and status not in (408, 429) else Unreachable)
        with contextlib.suppress(requests.RequestException):
            said = re.sub(r"<title>.*?</title>|<[^>]*>", " ", response.text[:5000])
            said = " ".join(html.unescape(said).split())[:300]
            return kind(f"Failed to {what}: Glance answers {status}: {said or response.reason}".rstrip(".") + ".")
        return kind(f"Failed to {what}: Glance answers {status}.")


class _NotBegun(Exception):
    """Glance did not make the image: there is nothing to take back."""

    def __init__(self, reason: LifecycleError | Spent) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Body:
    """An upload: a length and pieces, so that it is sent with its length and never held. It is sent once: a token that
    expires meanwhile makes keystoneauth send a body again, which would be the rest of it."""

    def __init__(self, content: Content, hashes: Hashes, what: str) -> None:
        self._content = content
        self._hashes = hashes
        self._what = what
        self._begun = False
        self.error: LifecycleError | None = None

    def __len__(self) -> int:
        """All bytes."""
        return len(self._content)

    def __iter__(self) -> t.Iterator[memoryview]:
        """The pieces."""
        try:
            if self._begun:
                raise Denied(
                    f"Failed to {self._what}: the token was not taken any more in the middle of it.",
                    hint="Run the task again.",
                )
            self._begun = True
            with working(self._what):
                yield from self._pieces()
        except LifecycleError as exc:
            self.error = exc
            raise

    def _pieces(self) -> t.Iterator[memoryview]:
        sent, size = 0, len(self)
        for block in hashed(self._content, self._hashes):
            view = memoryview(block).cast("B")
            sent += len(view)
            if sent > size:
                raise Invalid(f"Failed to {self._what}: its content is longer than the {size} bytes announced.")
            for start in range(0, len(view), _PIECE):
                yield view[start : start + _PIECE]
        if sent != size:
            raise Invalid(f"Failed to {self._what}: its content ended after {sent} of {size} bytes.")


class _Download:
    """The content of an image, verified."""

    def __init__(
        self, store: GlanceStore, response: t.Any, size: int, digests: t.Mapping[str, str], called: str
    ) -> None:
        self._store = store
        self._response = response
        self._size = size
        self._digests = digests
        self._called = called

    def __len__(self) -> int:
        """All bytes."""
        return self._size

    def __iter__(self) -> t.Iterator[Block]:
        """The blocks; the last one only when all of them are as they were stored."""
        return verified(self._blocks(), size=self._size, digests=self._digests, called=self._called)

    def _blocks(self) -> t.Iterator[Block]:
        pieces = self._response.iter_content(_CHUNK)
        pending = bytearray()
        # As HTTP announced it: not every urllib3 compares, and over TLS a lost connection looks like an end.
        announced = self._response.headers.get("Content-Length", "")
        missing = int(announced) if announced.isdecimal() else 0
        while True:
            with self._store.doing(f"read {self._called}"):
                piece = next(pieces, b"")
            missing -= len(piece)
            if not piece:
                if missing > 0:
                    raise Unreachable(f"Failed to read {self._called}: the connection ended {missing} bytes early.")
                break
            if len(piece) == _CHUNK and not pending:
                yield piece
                continue
            pending += piece
            if len(pending) >= _CHUNK:
                yield bytes(pending[:_CHUNK])
                del pending[:_CHUNK]
        if pending:
            yield pending


@contextlib.contextmanager
def _named_errors() -> t.Iterator[None]:
    """keystoneauth tells some missing options, and broken files, with exceptions of no kind of its own."""
    try:
        yield
    except (keystoneauth1.exceptions.ClientException, openstack.exceptions.SDKException, requests.RequestException):
        raise
    except Exception as exc:
        raise openstack.exceptions.ConfigException(str(exc)) from exc


def _writer(pid: int) -> str:
    """Which process: its number, when it began in ticks since the machine was started (proc(5); nothing when there is
    none), and the machine."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            since = file.read().rpartition(")")[2].split()[19]
    except OSError:
        since = ""
    return f"{pid} {since} {platform.node()}"


def _secrets(auth: t.Mapping[str, t.Any]) -> list[str]:
    return [str(value) for key, value in auth.items() if value and _SECRET.search(key)]
