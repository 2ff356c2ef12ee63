# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What we remember of a VM: one element in the domain's own ``<metadata>``, read and written as a tree.

libvirt keeps it with the definition, carries it along in a migration and shows it in ``virsh dumpxml``. libvirt puts
the namespace prefix on all elements when it writes the domain XML and takes it off again in ``virDomainGetMetadata``,
so elements are read by their local names.
"""

from __future__ import annotations

import copy
import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, fields, replace

from .._core.errors import Invalid, Unsupported
from .._core.journal import Journal
from .flavor import Flavor

NAMESPACE = "urn:kvmops:lifecycle:instance"
PREFIX = "kvmops"
SCHEMA = 1

# What becomes of a VM when its host is emptied, and how VMs of a group lie to each other (Nova: server groups).
STRATEGIES = ("live", "cold", "stop", "leave")
GROUP_POLICIES = ("affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity")

_Record = t.TypeVar("_Record")
# What XML 1.0 cannot hold, not even as a reference.
_UNSTORABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Lock:
    """The user's lock (Nova: ``lock`` with ``locked_reason``)."""

    since: str
    reason: str = ""


@dataclass(frozen=True)
class Mark:
    """A state that libvirt cannot know and that outlives the operation that brought it about.

    :param state: Nova's vm_state: ``soft-delete``, ``error`` …
    :param since: Stamp of when it came about.
    :param data: What leaving the state needs: ``power_before``, ``reclaim_at`` …
    """

    state: str
    since: str
    data: t.Mapping[str, str] = field(default_factory=dict)

    def recall(self, record: type[_Record], what: str) -> _Record:
        """The record, a dataclass of texts, that ``data`` was made of.

        :param what: What it remembers: "resize".
        :raises Invalid: It is something else.
        """
        try:
            return record(**{each.name: self.data[each.name] for each in fields(record)})  # type: ignore[arg-type]
        except KeyError as exc:
            raise Invalid(
                f"What the VM's metadata remember of its {what} cannot be read: {exc} is missing.",
                hint="Define the VM anew by hand, and remove the mark with 'virsh metadata --remove'.",
            ) from exc


@dataclass(frozen=True)
class OwnDisk:
    """A disk that a launch or a rebuild made, and that goes with the VM.

    :param role: ``root``, ``ephemeral``, ``swap``, ``config``, or ``data`` for one that a rebuild made in the place of
        a disk of another tool.
    :param target: The device name in the guest: ``vda``.
    :param path: The file on the host.
    """

    role: str
    target: str
    path: str


@dataclass(frozen=True)
class Launch:
    """Where a VM that we launched comes from.

    :param at: Stamp of the launch.
    :param by: Who launched it: ``user@node``.
    :param image: The image as the user named it.
    :param image_id: Its identifier, when it is one of an image store.
    :param store: The kind of that store, and ``place`` what tells it from others of the kind.
    :param properties: Of the image, those that images made of the VM inherit (Nova: system metadata ``image_*``).
    :param base: The file in the base cache that the root disk is an overlay of.
    :param base_format: Its format.
    :param base_sha256: Its hash, hexadecimal.
    :param storage: The directory under which its own directory lies.
    :param spec: What the user asked for that the domain XML does not tell again: a hash per option.
    """

    at: str
    by: str
    image: str
    base: str
    base_format: str
    base_sha256: str
    storage: str
    spec: t.Mapping[str, str] = field(default_factory=dict)
    image_id: str = ""
    store: str = ""
    place: str = ""
    properties: t.Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A group of VMs that belong together, or apart.

    :param policy: One of :data:`GROUP_POLICIES`.
    """

    name: str
    policy: str


@dataclass(frozen=True)
class Policy:
    """What shall become of a VM when its host is emptied, or dies.

    :param strategy: One of :data:`STRATEGIES`; empty for what the task says.
    :param priority: The higher, the earlier it is brought back from a dead host.
    """

    strategy: str = ""
    priority: int = 0
    groups: tuple[Group, ...] = ()

    def tell(self) -> dict[str, t.Any]:
        """For results and diffs."""
        groups = [dict(vars(group)) for group in self.groups]
        return {"strategy": self.strategy, "priority": self.priority, "groups": groups}


@dataclass(frozen=True)
class Origin:
    """Where a VM was before its host was emptied.

    :param host: The host's name as libvirt tells it.
    :param since: Stamp of when that was noted.
    :param power: What the guest was doing: a condition of :mod:`.status`.
    """

    host: str
    since: str
    power: str
    reason: str = ""


@dataclass(frozen=True)
class Instance:
    """The whole of what we remember. An empty one is the same as none at all.

    :param marks: From the oldest to the newest; the newest is the VM's state.
    :param foreign: Elements of this schema that this version does not know, kept as they are.
    :param generation: What tells the definition that an evacuation made from those that were before it.
    """

    lock: Lock | None = None
    flavor: Flavor | None = None
    launch: Launch | None = None
    disks: tuple[OwnDisk, ...] = ()
    marks: tuple[Mark, ...] = ()
    journal: Journal | None = None
    foreign: tuple[str, ...] = ()
    policy: Policy | None = None
    origin: Origin | None = None
    generation: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remember."""
        return self == Instance()

    @property
    def mark(self) -> Mark | None:
        """The newest mark."""
        return self.marks[-1] if self.marks else None

    def marked(self, mark: Mark) -> Instance:
        """With *mark* on top, in the place of one of the same state."""
        return replace(self, marks=(*self.unmarked(mark.state).marks, mark))

    def unmarked(self, state: str) -> Instance:
        """Without the mark of *state*."""
        return replace(self, marks=tuple(mark for mark in self.marks if mark.state != state))


def dump(instance: Instance) -> str:
    """The element for ``virDomainSetMetadata``: no prefixes, libvirt adds them.

    :raises Invalid: Something in it cannot be written as XML.
    """
    root = ET.Element("instance", {"schema": str(SCHEMA)})
    if instance.lock:
        ET.SubElement(root, "lock", {"since": instance.lock.since}).text = instance.lock.reason
    if instance.flavor:
        f = instance.flavor
        node = ET.SubElement(
            root,
            "flavor",
            {"name": f.name, "vcpus": str(f.vcpus), "memory": str(f.memory), "root": str(f.root), "swap": str(f.swap)},
        )
        for size in f.ephemeral:
            ET.SubElement(node, "ephemeral", {"size": str(size)})
    if instance.launch:
        launch = instance.launch
        node = ET.SubElement(root, "launch", {"at": launch.at, "by": launch.by, "storage": launch.storage})
        origin = {"id": launch.image_id, "store": launch.store, "place": launch.place}
        ET.SubElement(node, "image", {key: value for key, value in origin.items() if value}).text = launch.image
        base = {"format": launch.base_format, "sha256": launch.base_sha256}
        ET.SubElement(node, "base", base).text = launch.base
        for key in sorted(launch.spec):
            ET.SubElement(node, "spec", {"name": key}).text = launch.spec[key]
        for key in sorted(launch.properties):
            ET.SubElement(node, "property", {"name": key}).text = launch.properties[key]
    for disk in instance.disks:
        ET.SubElement(root, "disk", {"role": disk.role, "target": disk.target}).text = disk.path
    for mark in instance.marks:
        node = ET.SubElement(root, "state", {"value": mark.state, "since": mark.since})
        for key in sorted(mark.data):
            ET.SubElement(node, "data", {"name": key}).text = mark.data[key]
    if instance.journal:
        j = instance.journal
        attributes = {"action": j.action, "since": j.since, "node": j.node, "pid": str(j.pid), "step": j.step}
        ET.SubElement(root, "journal", attributes).text = j.dump_data()
    if instance.policy:
        policy = instance.policy
        node = ET.SubElement(root, "policy", {"strategy": policy.strategy, "priority": str(policy.priority)})
        for group in policy.groups:
            ET.SubElement(node, "group", {"name": group.name, "policy": group.policy})
    if instance.origin:
        came = instance.origin
        attributes = {"host": came.host, "since": came.since, "power": came.power}
        ET.SubElement(root, "origin", attributes).text = came.reason
    if instance.generation:
        ET.SubElement(root, "generation").text = instance.generation
    for text in instance.foreign:
        root.append(ET.fromstring(text))
    return _text(root)


def load(root: ET.Element | str | None) -> Instance:
    """What :func:`dump` wrote, from the element or its text; ``None`` is an empty instance.

    :raises Unsupported: A newer version of the collection wrote it.
    :raises Invalid: It cannot be read.
    """
    if root is None:
        return Instance()
    try:
        node = ET.fromstring(root) if isinstance(root, str) else root
        schema = int(node.get("schema", "0"))
        if schema > SCHEMA:
            raise Unsupported(
                f"The VM's metadata has schema {schema}; this version of kvmops.lifecycle knows up to {SCHEMA}.",
                hint="Use the version of the collection that wrote it, or a newer one.",
            )
        return _load(node)
    except (ET.ParseError, ValueError, KeyError) as exc:
        raise Invalid(
            f"The VM's metadata in the namespace {NAMESPACE} cannot be read: {exc}.",
            hint="Remove it with 'virsh metadata --remove', or mend it with 'virsh edit'.",
        ) from exc


def find(domain: ET.Element) -> Instance:
    """The instance in a whole domain's XML."""
    return load(domain.find(f"metadata/{{{NAMESPACE}}}instance"))


def _text(node: ET.Element) -> str:
    """*node* as text that is read back as it is. ElementTree neither refuses nor escapes what has to be."""
    text = ET.tostring(node, encoding="unicode").replace("\r", "&#13;")
    found = _UNSTORABLE.search(text)
    if found:
        before = text[max(0, found.start() - 40) : found.start()]
        raise Invalid(f"The VM's metadata cannot hold the character U+{ord(found.group()):04X}, after {before!r}.")
    return text


def _local(node: ET.Element) -> str:
    return node.tag.rpartition("}")[2]


def _data(node: ET.Element, name: str) -> dict[str, str]:
    return {child.attrib["name"]: child.text or "" for child in node if _local(child) == name}


def _load(root: ET.Element) -> Instance:
    lock: Lock | None = None
    flavor: Flavor | None = None
    launch: Launch | None = None
    journal: Journal | None = None
    policy: Policy | None = None
    origin: Origin | None = None
    generation = ""
    disks: list[OwnDisk] = []
    marks: list[Mark] = []
    foreign: list[str] = []
    for node in root:
        kind, text, attributes = _local(node), node.text or "", node.attrib
        if kind == "lock":
            lock = Lock(since=attributes["since"], reason=text)
        elif kind == "flavor":
            flavor = Flavor(
                name=attributes["name"],
                vcpus=int(attributes["vcpus"]),
                memory=int(attributes["memory"]),
                root=int(attributes["root"]),
                swap=int(attributes["swap"]),
                ephemeral=tuple(int(child.attrib["size"]) for child in node),
            )
        elif kind == "launch":
            children = {_local(child): child for child in node}
            launch = Launch(
                at=attributes["at"],
                by=attributes["by"],
                storage=attributes["storage"],
                image=children["image"].text or "",
                base=children["base"].text or "",
                base_format=children["base"].attrib["format"],
                base_sha256=children["base"].attrib["sha256"],
                spec=_data(node, "spec"),
                image_id=children["image"].get("id", ""),
                store=children["image"].get("store", ""),
                place=children["image"].get("place", ""),
                properties=_data(node, "property"),
            )
        elif kind == "disk":
            disks.append(OwnDisk(role=attributes["role"], target=attributes["target"], path=text))
        elif kind == "state":
            marks.append(Mark(state=attributes["value"], since=attributes["since"], data=_data(node, "data")))
        elif kind == "journal":
            journal = Journal(
                action=attributes["action"],
                since=attributes["since"],
                node=attributes["node"],
                pid=int(attributes["pid"]),
                step=attributes["step"],
                data=Journal.load_data(text),
            )
        elif kind == "policy":
            groups = tuple(Group(child.attrib["name"], child.attrib["policy"]) for child in node)
            policy = Policy(attributes["strategy"], int(attributes["priority"]), groups)
        elif kind == "origin":
            origin = Origin(attributes["host"], attributes["since"], attributes["power"], text)
        elif kind == "generation":
            generation = text
        else:
            foreign.append(_plain(node))
    return Instance(
        lock, flavor, launch, tuple(disks), tuple(marks), journal, tuple(foreign), policy, origin, generation
    )


def _plain(node: ET.Element) -> str:
    """*node* as text without namespaces, as ``virDomainSetMetadata`` takes it."""
    plain = copy.deepcopy(node)
    for each in plain.iter():
        each.tag = _local(each)
    plain.tail = None
    return _text(plain)
