# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The shelves of an image store: looking for them, reading them back, removing them."""

from __future__ import annotations

import contextlib
import itertools
import typing as t
import xml.etree.ElementTree as ET

from .._core.errors import Invalid, LifecycleError, NotFound, Refused, Unreachable
from .._core.journal import Journal
from .._images.base import ACTIVE, Image, NewImage, Spent
from .._images.content import Hashes, TextContent, hashed
from .._libvirt.guest import Guest
from .._model import instance as memory
from .._model import shelf, snapshot
from .._model.instance import Instance
from .._model.shelf import Shelf
from .._model.snapshot import Manifest, Member
from .._model.status import State, status_of
from .._model.unshelve import INSTANT, Began
from .._task import Context, Subject

SHELVE, OFFLOAD, UNSHELVE = "shelve", "shelve_offload", "unshelve"
_SOCKETS = "/run/kvmops"


def shelf_of(context: Context, vm: Subject) -> Shelf | None:
    """The whole shelf of a VM in the task's image store; ``None`` when there is none.

    Of a VM that is not on this host it is looked for by what the task says, and told in *vm* what the shelf knows.

    :raises Ambiguous: Several VMs had that name.
    """
    wanted = {"image_type": shelf.KIND, **({"instance_uuid": vm.guest.uuid} if vm.guest else {})}
    found = shelf.pick(shelf.shelves(context.store.find(properties=wanted)), vm.guest.uuid if vm.guest else vm.name)
    if found and vm.guest is None:
        vm.absent = "SHELVED_OFFLOADED"
        vm.kept = kept(context, found)
    return found


def kept(context: Context, found: Shelf) -> Instance:
    """What is remembered of a VM in its shelf: its lock, before all. Who needs more of it tells when it is damaged."""
    for member in found.manifest.members:
        if member.role == shelf.DOMAIN:
            try:
                return memory.find(ET.fromstring(read(context, member)))
            except (LifecycleError, ET.ParseError):
                break
    return Instance()


def read(context: Context, member: Member) -> bytes:
    """A small image of a shelf, verified. The definition, which is wanted again and again, is read once a task.

    :raises Invalid: It is damaged.
    :raises NotFound: It is gone.
    """
    if member.role == shelf.DOMAIN:
        return context.once(f"definition {member.id} {member.sha256}", lambda: _read(context, member))
    return _read(context, member)


def _read(context: Context, member: Member) -> bytes:
    image = image_of(context, member)
    with context.store.open(image) as content:
        return b"".join(bytes(block) for block in content)


def image_of(context: Context, member: Member) -> Image:
    """The image of a member of a shelf, as long as it was and with the same hash, as far as the store tells.

    :raises NotFound: It is gone.
    :raises Invalid: It is another one.
    """
    store = context.store
    image = store.get(member.id)
    if image is None:
        raise NotFound(f"Image {member.id} ({member.role} {member.target}) is not in {store.place} any more.")
    known = image.digests.get("sha256", member.sha256)
    if image.status != ACTIVE or image.size != member.size or known != member.sha256:
        raise Invalid(f"Image {image.name} ({image.where}) is not what was stored: it is damaged.", image=image.id)
    return image


# ---- reading back


def verify(context: Context, manifest: Manifest, *, thoroughly: bool) -> int:
    """See that a shelf, with the images that it builds upon, is what was stored.

    :param thoroughly: By reading all of it, and a base once a task; else what the store tells is believed.
    :returns: How many bytes were read.
    :raises Invalid: An image is damaged; the error names it and where it lies.
    :raises NotFound: One is gone.
    """
    images = [(image_of(context, member), member.sha256) for member in manifest.members]
    bases = _bases(context, [image for image, _sha256 in images])
    if not thoroughly:
        return 0
    known: set[str] = context.once("bases that were read", set)
    ahead = [*images, *((image, sha256) for image, sha256 in bases if image.id not in known)]
    for image, sha256 in ahead:
        read_back(context, image, sha256)
    known.update(image.id for image, _sha256 in bases)
    return sum(image.size for image, _sha256 in ahead)


def read_back(context: Context, image: Image, sha256: str, go_on: t.Callable[[int], bool] | None = None) -> None:
    """Read an image, and see that its content has that hash.

    :param sha256: Hexadecimal; empty when only what the store tells can be compared.
    :param go_on: Is told how long each block is; ``False`` ends it, and then nothing was seen.
    :raises Invalid: It has another one.
    """
    # Reading compares what the store tells. It need not tell this hash.
    wanted = ["sha256"] if sha256 and "sha256" not in image.digests else []
    with context.store.open(image) as content, Hashes(wanted) as hashes:
        for block in hashed(content, hashes):
            if go_on and not go_on(len(block)):
                return
        if any(found != sha256 for found in hashes.told().values()):
            raise Invalid(f"Image {image.name} ({image.where}) is damaged: its sha256 is not {sha256}.")


def _bases(context: Context, images: t.Iterable[Image]) -> list[tuple[Image, str]]:
    """What deltas build upon, and so on, each with the hash that it was built upon."""
    found: dict[str, tuple[Image, str]] = {}
    ahead = [image for image in images if image.properties.get(snapshot.FORM) == snapshot.DELTA]
    while ahead:
        upper = ahead.pop()
        parent_id = upper.properties.get(snapshot.PARENT, "")
        sha256 = upper.properties.get(snapshot.PARENT_SHA256, "")
        if parent_id in found:
            continue
        image = context.store.get(parent_id)
        if image is None or image.status != ACTIVE:
            raise NotFound(
                f"Image {upper.name} ({upper.where}) builds upon the image {parent_id}, which is not in"
                f" {context.store.place}.",
                image=upper.id,
                parent=parent_id,
            )
        if sha256 and image.digests.get("sha256", sha256) != sha256:
            raise Invalid(
                f"Image {image.name} ({image.where}) is not the one that {upper.name} was built upon: its sha256 is"
                f" {image.digests['sha256']}, and was {sha256}.",
                image=image.id,
            )
        found[parent_id] = image, sha256
        if image.properties.get(snapshot.FORM) == snapshot.DELTA:
            ahead.append(image)
    return list(found.values())


# ---- which store, and who has it


def claim_of(context: Context, set_id: str) -> shelf.Claim | None:
    """Who takes the VM of a shelf to another host, if somebody does."""
    return shelf.claims(_claims(context, set_id)).get(set_id)


def _claims(context: Context, set_id: str) -> list[Image]:
    found = context.store.find(properties={"image_type": shelf.KIND, snapshot.SET: set_id})
    return [image for image in found if shelf.CLAIMED in image.properties]


def put_claim(context: Context, manifest: Manifest, claim: shelf.Claim) -> None:
    """Say in the store that a host brings a VM back.

    :raises Invalid: Another one has said so.
    :raises Busy: The same.
    """
    for attempt in itertools.count():
        new = NewImage(
            id=shelf.claim_id(manifest.set_id, attempt),
            name=f"{manifest.name}-{shelf.CLAIM}",
            disk_format="raw",
            properties={
                "image_type": shelf.KIND,
                "instance_uuid": manifest.vm_uuid,
                snapshot.SET: manifest.set_id,
                snapshot.ROLE: shelf.CLAIM,
                shelf.CLAIMED: claim.dump(),
            },
        )
        try:
            context.store.put(new, TextContent(claim.dump().encode()))
        except Spent:
            continue
        return


def release(context: Context, set_id: str) -> None:
    """Take back whatever claim there is upon a shelf."""
    for image in _claims(context, set_id):
        context.store.delete(image.id)


def demand_store(context: Context, kind: str, place: str, *, name: str) -> None:
    """See that the task names the store that has the shelf of a VM.

    :param kind: Of that store, and ``place`` what tells it from others.
    :raises Refused: It names another one.
    """
    if place != context.store.place:
        how = f"{{type: glance, …}} for {place}" if kind == "glance" else f"{{path: {place}}}"
        raise Refused(
            f"The shelf of VM {name} is in {place}, and the task's image store is {context.store.place}.",
            hint=f"Say image_store: {how}.",
            store=kind,
            place=place,
        )


def demand_same(context: Context, guest: Guest) -> None:
    """See that a VM which is here is the one that the task means: another one of its name may wait on a shelf. When the
    store does not answer, it is taken for the same.

    :raises Refused: One does.
    """
    if guest.uuid in context.params["name"]:
        return
    with contextlib.suppress(Unreachable):
        for each in shelf.shelves(context.store.find(properties={"image_type": shelf.KIND})):
            if each.manifest.vm == guest.name and each.manifest.vm_uuid != guest.uuid:
                raise Refused(
                    f"{context.host.name} has a VM with the name {guest.name}, and another one of that name is shelved"
                    f" in {context.store.place}: its UUID is {each.manifest.vm_uuid}.",
                    hint="Say which one you mean by its UUID. The one that is shelved cannot come to this host before"
                    " the other one is renamed or removed.",
                    uuid=each.manifest.vm_uuid,
                )


# ---- read in place


def sockets_of(uuid: str) -> str:
    """The directory for the sockets through which the QEMU of a VM reads images that are not files."""
    return f"{_SOCKETS}/{uuid}"


def withdraw(context: Context, uuid: str, began: Began) -> None:
    """Let go of the images in the store that a VM was brought back upon. Its QEMU is done with them."""
    if began.start != INSTANT:
        return
    directory = sockets_of(uuid)
    for image_id in dict.fromkeys(each for piece in began.disks for each in (piece.image, *piece.parents)):
        context.store.withdraw(Image(image_id, "", "", 0, ""), directory)
    context.storage.remove_directory(directory)


# ---- removing


def drop(context: Context, images: t.Iterable[str], set_id: str) -> dict[str, t.Any]:
    """Remove the images of a shelf, and the claim upon it. One that other images build upon stays, as an image like
    others.

    :param images: Identifiers. The last one goes first, as the first image leads a later run to the others. The claim
        goes after all of them: until then nobody else may begin.
    :param set_id: Of the shelf.
    """
    store = context.store
    images = list(images)
    removed, kept = [], {}
    for image_id in reversed(images):
        image = store.get(image_id)
        if image is None:
            continue
        upon = [each.name for each in store.find(properties={snapshot.PARENT: image_id}) if each.id not in images]
        if upon:
            alone = dict.fromkeys((snapshot.MANIFEST, snapshot.SET, shelf.STATE))
            store.update(image, properties={**alone, "image_type": "snapshot"}, protected=False)
            kept[image.name] = f"{', '.join(sorted(upon))} lies upon it"
            continue
        if image.protected:
            store.update(image, protected=False)
        store.delete(image_id)
        removed.append(image_id)
    release(context, set_id)
    return {"removed_images": removed, **({"kept_images": kept} if kept else {})}


def ids_of(manifest: Manifest) -> list[str]:
    """The images of a shelf."""
    return [member.id for member in manifest.members]


# ---- what was begun, and what is told


def dead_run(vm: Subject) -> Journal | None:
    """The journal of a process that died while it worked on this VM."""
    journal = vm.instance.journal
    if vm.seen is None or vm.seen.running is not None or journal is None or not journal.ours:
        return None
    return journal if journal.action in (SHELVE, OFFLOAD, UNSHELVE) else None


def told(state: State | None, name: str = "") -> dict[str, t.Any]:
    """A VM, for the diff.

    :param name: Of its shelf; empty without.
    """
    if state is None:
        return {"status": status_of(shelf.VM_STATES[shelf.OFFLOADED]), "power_state": "NOSTATE", "shelf": name}
    return {"status": state.status, "power_state": state.power_state, "shelf": name}
