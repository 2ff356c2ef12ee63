# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Snapshots and backups as values: which disks, what is written with their images, which backups may go.

A snapshot is a *set* of images, one for each disk, tied together by the property :data:`SET`. The image of the first
disk has the manifest as a property, which is written last: a set without it is not complete and does not count.

A *delta* is a qcow2 image without a backing file in its header, whose unallocated clusters mean "as in the parent",
another image of the same store. Image stores refuse qcow2 images with a backing file, and a service that took a delta
for a whole disk would boot rubbish; so it is declared ``raw``, which does not boot, and told by properties.
"""

from __future__ import annotations

import hashlib
import json
import typing as t
import uuid
from dataclasses import asdict, dataclass, field

from .._core.errors import Invalid, NotFound, Refused, Unsupported
from .domain import Disk

SET = "kvmops_set"
ROLE = "kvmops_role"  # "disk", or "memory" for the memory of a suspended VM; see also shelf.py
DISK = "kvmops_disk"  # the target, as vda
FORM = "kvmops_form"
FORMAT = "kvmops_format"  # what the content really is: qcow2
PARENT = "kvmops_parent"  # the identifier of the image that a delta lies upon
PARENT_SHA256 = "kvmops_parent_sha256"
VIRTUAL_SIZE = "kvmops_virtual_size"  # bytes
MANIFEST = "kvmops_manifest"

FULL, DELTA = "full", "delta"
_SCHEMA = 1
_CHECKPOINT = "kvmops-"

# Nova's non_inheritable_image_properties: what belongs to one image and not to the next one made of it.
_OWN = frozenset(
    (
        "bittorrent",
        "cache_in_nova",
        "cinder_encryption_key_deletion_policy",
        "cinder_encryption_key_id",
        "img_signature",
        "img_signature_certificate_uuid",
        "img_signature_hash_method",
        "img_signature_key_type",
    )
)


class Stored(t.Protocol):
    """What is needed here of an image in a store (:class:`.._images.base.Image`)."""

    @property
    def id(self) -> str:
        """Its identifier."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def status(self) -> str:
        """``active`` when it is whole."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def created_at(self) -> str:
        """When it was made, as a stamp."""

    @property
    def properties(self) -> t.Mapping[str, str]:
        """What is told about it."""


# ---- which disks


@dataclass(frozen=True)
class Chosen:
    """The disks of a VM that a snapshot is of.

    :param left: The others that hold data of the VM, by target, each with the reason.
    """

    disks: tuple[Disk, ...]
    left: t.Mapping[str, str]


def choose(disks: t.Sequence[Disk], wanted: t.Sequence[str], *, name: str) -> Chosen:
    """The disks that *wanted* means: ``root`` (the first one, as in Nova), ``all`` (all that lie on the host), or
    targets.

    :raises NotFound: VM *name* has no such disk.
    :raises Refused: It has none at all; or a disk that was named holds nothing that could be copied.
    :raises Unsupported: A disk that was named cannot be copied.
    """
    if not wanted:
        raise Refused(f"VM {name}: no disk was named.", hint="Say disks: all, root, or the targets of some.")
    hard = [disk for disk in disks if disk.device in ("disk", "lun")]
    if not hard:
        raise Refused(f"VM {name} has no disk.")
    if set(wanted) == {"root"}:
        _demand(hard[0], name)
        return Chosen((hard[0],), {disk.target: "not asked for" for disk in hard[1:]})
    if set(wanted) == {"all"}:
        reasons = {disk.target: _reason(disk) or _volume(disk) for disk in hard}
        chosen = tuple(disk for disk in hard if not reasons[disk.target])
        if not chosen:
            told = "; ".join(f"{target}: {reason}" for target, reason in reasons.items())
            raise Refused(f"VM {name} has no disk on the host that could be copied. {told}.")
        return Chosen(chosen, {target: reason for target, reason in reasons.items() if reason})
    targets = {disk.target: disk for disk in disks}
    for target in wanted:
        if target not in targets:
            raise NotFound(
                f"VM {name} has no disk {target!r}.", hint=f"It has {', '.join(disk.target for disk in hard)}."
            )
        _demand(targets[target], name)
    return Chosen(
        tuple(disk for disk in hard if disk.target in wanted),
        {disk.target: "not asked for" for disk in hard if disk.target not in wanted},
    )


def _reason(disk: Disk) -> str:
    """Why a disk cannot be copied, or nothing."""
    if disk.device not in ("disk", "lun") or disk.empty:
        return "it is no disk of the VM's own"
    if disk.readonly:
        return "it is read-only"
    if disk.encrypted:
        return "it is encrypted, and its image would not be"
    if disk.image.kind in ("dir", "nvme", "vhostuser") or disk.device == "lun":
        return f"QEMU cannot copy {disk.image.kind if disk.device != 'lun' else 'lun'} disks"
    return ""


def _volume(disk: Disk) -> str:
    """Why a disk that can be copied is not, unless it is named."""
    if disk.image.kind == "network":
        return f"it is a volume on network storage ({disk.image.protocol}:{disk.image.source})"
    if disk.shareable:
        return "other VMs may write to it (shareable)"
    return ""


def _demand(disk: Disk, name: str) -> None:
    reason = _reason(disk)
    if reason:
        kind = Refused if disk.readonly or disk.empty or disk.device not in ("disk", "lun") else Unsupported
        raise kind(f"VM {name}: disk {disk.target} cannot be copied: {reason}.", target=disk.target)


# ---- names and properties


def image_id(set_id: str, role: str, target: str = "") -> str:
    """The identifier of an image of a set. It follows from the set's, so a later run finds what a dead one left."""
    return str(uuid.uuid5(uuid.UUID(set_id), f"{role} {target}".strip()))


def image_name(name: str, index: int, role: str, target: str) -> str:
    """The name of an image of the set *name*: the first disk's is the set's own, as Nova would call it."""
    if role == "disk" and index == 0:
        return name
    return f"{name}-{target or role}"


def checkpoint_name(backup_type: str, set_id: str) -> str:
    """The name of libvirt's checkpoint that the next increment after the backup *set_id* begins at."""
    return f"{_checkpoints(backup_type)}{set_id}"


def own_checkpoints(names: t.Iterable[str], backup_type: str = "") -> list[str]:
    """Those of *names* that backups made: of that type, or any."""
    start = _checkpoints(backup_type) if backup_type else _CHECKPOINT
    return [name for name in names if name.startswith(start)]


def _checkpoints(backup_type: str) -> str:
    safe = "".join(each if each.isalnum() and each.isascii() else "_" for each in backup_type)
    if safe != backup_type:  # another type may become the same
        safe += hashlib.sha256(backup_type.encode()).hexdigest()[:8]
    return f"{_CHECKPOINT}{safe}-"


def inherited(properties: t.Mapping[str, str]) -> dict[str, str]:
    """The properties that an image made of a VM has from the image that the VM was launched from."""
    return {
        key: value
        for key, value in properties.items()
        if key not in _OWN and not key.startswith(("os_glance", "kvmops_", "image_", "backup_"))
    }


# ---- the manifest


@dataclass(frozen=True)
class Member:
    """One image of a set.

    :param role: ``disk`` or ``memory``; a shelf has others too (:mod:`.shelf`).
    :param id: Of the image in the store.
    :param size: Of the image's content, in bytes; ``sha256`` is its hash.
    :param target: Of the disk.
    :param form: ``full`` or ``delta``; ``parent`` is the image that a delta lies upon.
    :param format: ``qcow2``, or ``save`` for memory.
    :param virtual_size: Of the disk, in bytes.
    """

    role: str
    id: str
    size: int
    sha256: str
    target: str = ""
    form: str = FULL
    parent: str = ""
    format: str = "qcow2"
    virtual_size: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a set is.

    :param kind: ``snapshot`` or ``backup``, as Nova's ``image_type``; or ``shelf``.
    :param at: Stamp of the point in time.
    :param quiesced: Whether the guest's file systems were frozen at that point.
    :param state: The VM's power state then: ``running``, ``paused``, ``stopped`` or ``suspended``.
    :param checkpoint: libvirt's checkpoint of that point, that an increment may begin at; or empty.
    :param left: Disks that the set has no image of, each with the reason.
    :param shelf: Of a shelf (:mod:`.shelf`): what is known of the VM besides.
    """

    set_id: str
    name: str
    vm: str
    vm_uuid: str
    kind: str
    at: str
    quiesced: bool
    state: str
    members: tuple[Member, ...]
    backup_type: str = ""
    checkpoint: str = ""
    left: t.Mapping[str, str] = field(default_factory=dict)
    shelf: t.Mapping[str, t.Any] | None = None

    def dump(self) -> str:
        """As ASCII JSON: Glance refuses other characters."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def load(text: str) -> Manifest:
        """What :meth:`dump` wrote.

        :raises Unsupported: A newer version of the collection wrote it.
        :raises Invalid: It cannot be read.
        """
        try:
            told = json.loads(text)
            schema = told.pop("schema")
            if schema != _SCHEMA:
                raise Unsupported(
                    f"A newer version of the collection wrote the manifest of a snapshot (schema {schema}).",
                    hint="Update the collection.",
                )
            told["members"] = tuple(Member(**member) for member in told["members"])
            return Manifest(**told)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise Invalid(f"The manifest of a snapshot cannot be read: {exc}.") from exc

    @property
    def disks(self) -> dict[str, Member]:
        """The images of disks, by target."""
        return {member.target: member for member in self.members if member.role == "disk"}

    @property
    def parents(self) -> frozenset[str]:
        """The images of other sets, or bases, that the deltas lie upon."""
        return frozenset(member.parent for member in self.members if member.parent)

    @property
    def size(self) -> int:
        """Bytes that all images take in the store."""
        return sum(member.size for member in self.members)


def manifests(images: t.Iterable[Stored]) -> list[Manifest]:
    """The manifests among *images*, in their order, whether or not the sets are complete. One that cannot be read, or
    that tells of another set than its image does, is none."""
    found = []
    for image in images:
        if MANIFEST not in image.properties:
            continue
        try:
            manifest = Manifest.load(image.properties[MANIFEST])
        except (Invalid, Unsupported):
            continue
        if manifest.set_id == image.properties.get(SET):
            found.append(manifest)
    return found


def complete(images: t.Iterable[Stored]) -> list[Manifest]:
    """The complete sets among *images*: all images of a manifest are there and whole."""
    by_id = {image.id: image for image in images}
    return [manifest for manifest in manifests(by_id.values()) if _is_whole(manifest, by_id)]


def _is_whole(manifest: Manifest, by_id: t.Mapping[str, Stored]) -> bool:
    for member in manifest.members:
        image = by_id.get(member.id)
        if image is None or image.status != "active" or image.size != member.size:
            return False
    return bool(manifest.members)


def missing(manifest: Manifest, look: t.Callable[[str], Stored | None]) -> str:
    """The identifier of an image that a set's deltas build upon, or that these build upon, and that is not there or not
    whole; empty when the set can be restored.

    :param look: The image of an identifier.
    """
    ahead, seen = sorted(manifest.parents), set(manifest.parents)
    while ahead:
        image_id = ahead.pop()
        image = look(image_id)
        if image is None or image.status != "active":
            return image_id
        parent = image.properties.get(PARENT, "")
        if image.properties.get(FORM) == DELTA and parent not in seen:
            seen.add(parent)
            ahead.append(parent)
    return ""


def orphaned(images: t.Iterable[Stored]) -> list[Manifest]:
    """Sets among *images* without a manifest, as far as their images tell: the one that had it was removed, or it was
    never written. Somebody may just be making one."""
    images = list(images)
    whole = sealed(images)
    by_set: dict[str, list[Stored]] = {}
    for image in images:
        set_id = image.properties.get(SET, "")
        if set_id and set_id not in whole:
            by_set.setdefault(set_id, []).append(image)
    return [
        Manifest(
            set_id=set_id,
            name=members[0].name,
            vm="",
            vm_uuid=members[0].properties.get("instance_uuid", ""),
            kind=members[0].properties.get("image_type", ""),
            at=min(image.created_at for image in members),
            quiesced=False,
            state="",
            members=tuple(
                Member(
                    role=image.properties.get(ROLE, ""),
                    id=image.id,
                    size=image.size,
                    sha256="",
                    target=image.properties.get(DISK, ""),
                    form=image.properties.get(FORM, FULL),
                    parent=image.properties.get(PARENT, ""),
                )
                for image in members
            ),
            backup_type=members[0].properties.get("backup_type", ""),
        )
        for set_id, members in by_set.items()
    ]


def sealed(images: t.Iterable[Stored]) -> frozenset[str]:
    """The identifiers of the sets among *images* that were complete once, by whatever version of the collection."""
    return frozenset(image.properties.get(SET, "") for image in images if MANIFEST in image.properties)


# ---- backups


@dataclass(frozen=True)
class Rotation:
    """What becomes of the backups of a VM and type, oldest first each.

    :param keep: The newest, as many as were asked for.
    :param needed: Older ones that increments among ``keep`` build upon.
    :param remove: The rest.
    """

    keep: tuple[Manifest, ...]
    needed: tuple[Manifest, ...]
    remove: tuple[Manifest, ...]


def newest_last(backups: t.Iterable[Manifest]) -> list[Manifest]:
    """In the order of their points in time. Of two of the same second an increment comes after its parent."""
    backups = list(backups)
    owner = {member.id: backup.set_id for backup in backups for member in backup.members}
    by_id = {backup.set_id: backup for backup in backups}

    def depth(backup: Manifest) -> int:
        return len(lineage(backup, by_id, owner))

    return sorted(backups, key=lambda backup: (backup.at, depth(backup), backup.set_id))


def lineage(backup: Manifest, by_id: t.Mapping[str, Manifest], owner: t.Mapping[str, str]) -> list[str]:
    """The identifiers of the sets that *backup* builds upon.

    :param owner: The set that each image belongs to.
    """
    found: list[str] = []
    ahead = [backup]
    while ahead:
        for image in ahead.pop().parents:
            set_id = owner.get(image)
            if set_id and set_id not in found and set_id != backup.set_id:
                found.append(set_id)
                ahead.append(by_id[set_id])
    return found


def rotate(backups: t.Iterable[Manifest], count: int, broken: t.Iterable[Manifest] = ()) -> Rotation:
    """Which backups are kept so that *count* of them can be restored, and which may go.

    :param backups: Those that can be restored.
    :param broken: Those that cannot. They do not count, and go when they are older than all that are kept.
    """
    ordered = newest_last(backups)
    keep = ordered[len(ordered) - count :] if count < len(ordered) else ordered
    owner = {member.id: backup.set_id for backup in ordered for member in backup.members}
    by_id = {backup.set_id: backup for backup in ordered}
    wanted = {backup.set_id for backup in keep}
    needed = {set_id for backup in keep for set_id in lineage(backup, by_id, owner)} - wanted
    past = [backup for backup in broken if len(keep) == count and backup.at < keep[0].at]
    return Rotation(
        tuple(keep),
        tuple(backup for backup in ordered if backup.set_id in needed),
        tuple(newest_last([*past, *(backup for backup in ordered if backup.set_id not in wanted | needed)])),
    )


@dataclass(frozen=True)
class Increment:
    """Whether the next backup can be an increment.

    :param parent: The backup that it builds upon; ``None`` for a full one.
    :param why: Why it has to be full.
    """

    parent: Manifest | None
    why: str = ""


def increment(
    backups: t.Iterable[Manifest], checkpoints: t.Container[str], targets: t.Collection[str], full_every: int
) -> Increment:
    """What the next backup of the disks *targets* builds upon: the newest backup, when libvirt still has its
    checkpoint.

    :param checkpoints: The names of those that the VM has.
    :param full_every: Every how manieth backup is a full one: else the first would be needed for ever.
    """
    ordered = newest_last(backups)
    if not ordered:
        return Increment(None, "it is the first backup of this type")
    newest = ordered[-1]
    owner = {member.id: backup.set_id for backup in ordered for member in backup.members}
    by_id = {backup.set_id: backup for backup in ordered}
    if set(newest.disks) != set(targets):
        return Increment(None, f"{newest.name} is of other disks")
    if not newest.checkpoint:
        return Increment(None, f"{newest.name} has no checkpoint")
    if newest.checkpoint not in checkpoints:
        return Increment(None, f"the checkpoint of {newest.name} is gone")
    if len(lineage(newest, by_id, owner)) + 1 >= full_every:
        return Increment(None, f"every backup number {full_every} is a full one")
    return Increment(newest)
