# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What we remember of a VM: written as XML, kept by libvirt, read back as it was."""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace

import libvirt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Invalid,
    LifecycleError,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import (
    GROUP_POLICIES,
    NAMESPACE,
    PREFIX,
    SCHEMA,
    STRATEGIES,
    Group,
    Instance,
    Launch,
    Lock,
    Mark,
    Origin,
    OwnDisk,
    Policy,
    dump,
    find,
    load,
)

# They are large, and what is special in text is tried by itself.
FEW = settings(max_examples=max(20, settings().max_examples // 10))
SINCE = "2026-01-01T00:00:00Z"
UNSTORABLE = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")

# Anything that XML can hold, and often what is special in it.
TEXT = st.text(st.sampled_from("<>&\"'\\t\\n\\r ]") | st.characters(codec="utf-8"), max_size=4).filter(
    lambda text: not UNSTORABLE.search(text)
)
SIZES = st.integers(1, 2**40)
FLAVORS = st.builds(
    Flavor,
    vcpus=SIZES,
    memory=SIZES,
    root=st.integers(0, 2**40),
    ephemeral=st.lists(SIZES, max_size=3).map(tuple),
    swap=st.integers(0, 2**40),
    name=TEXT,
)
WORDS = st.dictionaries(TEXT, TEXT, max_size=2)
LAUNCHES = st.builds(Launch, *[TEXT] * 7, WORDS, *[TEXT] * 3, WORDS)
MARKS = st.builds(Mark, TEXT, TEXT, st.dictionaries(TEXT, TEXT, max_size=2))
JOURNALS = st.builds(
    Journal, TEXT, TEXT, TEXT, st.integers(1, 2**22), TEXT, st.dictionaries(st.text(max_size=5), st.text(), max_size=2)
)
FOREIGN = st.builds(
    lambda name, text: dump_element(ET.Element(name, {"since": text}), text), st.sampled_from(["tpm", "weight"]), TEXT
)
GROUPS = st.lists(st.builds(Group, TEXT, st.sampled_from(GROUP_POLICIES)), max_size=2).map(tuple)
INSTANCES = st.builds(
    Instance,
    lock=st.none() | st.builds(Lock, TEXT, TEXT),
    flavor=st.none() | FLAVORS,
    launch=st.none() | LAUNCHES,
    disks=st.lists(st.builds(OwnDisk, TEXT, TEXT, TEXT), max_size=2).map(tuple),
    marks=st.lists(MARKS, max_size=2).map(tuple),
    journal=st.none() | JOURNALS,
    foreign=st.lists(FOREIGN, max_size=2).map(tuple),
    policy=st.none() | st.builds(Policy, st.sampled_from(["", *STRATEGIES]), st.integers(-(2**31), 2**31), GROUPS),
    origin=st.none() | st.builds(Origin, *[TEXT] * 4),
    generation=TEXT,
)

LAUNCH = Launch(SINCE, "root@kvm1", "/srv/i.qcow2", "/s/_base/ab.qcow2", "qcow2", "ab", "/s", {"cloud_init": "cd"})
JOURNAL = Journal("delete", SINCE, "kvm1", 4711, "remove_disks", {"größe": [1, None, "\x00"]})
FULL = Instance(
    lock=Lock(SINCE, "audit until Friday, ask Ada"),
    flavor=Flavor(2, 4096, 20, (10, 5), 512, "m1.small"),
    launch=LAUNCH,
    disks=(OwnDisk("root", "vda", "/s/u/root.qcow2"), OwnDisk("config", "sda", "/s/u/config.iso")),
    marks=(Mark("rescued", SINCE), Mark("soft-delete", SINCE, {"reclaim_at": SINCE, "power_before": "running"})),
    journal=JOURNAL,
    foreign=('<weight kilos="2">as it was</weight>',),
    policy=Policy("stop", 100, (Group("db", "anti-affinity"),)),
    origin=Origin("kvm2", SINCE, "paused", "before the drain"),
    generation="6f1c",
)


def dump_element(node: ET.Element, text: str) -> str:
    node.text = text
    return ET.tostring(node, encoding="unicode").replace("\r", "&#13;")


def in_domain(text: str) -> ET.Element:
    """A whole domain's XML with that element, as libvirt writes it: the prefix is on all of our elements."""
    root = ET.fromstring(text)
    for node in root.iter():
        node.tag = f"{{{NAMESPACE}}}{node.tag}"
    domain = ET.fromstring('<domain><metadata><app:x xmlns:app="urn:other"/></metadata></domain>')
    domain[0].append(root)
    return ET.fromstring(ET.tostring(domain, encoding="unicode").replace("\r", "&#13;"))


@pytest.fixture(scope="module")
def domain() -> Iterator[t.Any]:
    """A domain of libvirt's in-memory driver."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open("test:///default")
    yield connection.lookupByName("test")
    connection.close()


@FEW
@given(INSTANCES)
def test_what_is_written_is_read_back(instance: Instance) -> None:
    assert load(dump(instance)) == instance
    assert load(ET.fromstring(dump(instance))) == instance


@FEW
@given(INSTANCES)
def test_what_stands_in_a_whole_domain_is_the_same(instance: Instance) -> None:
    assert find(in_domain(dump(instance))) == instance


@FEW
@given(instance=INSTANCES)
def test_libvirt_gives_back_what_it_was_given(domain: t.Any, instance: Instance) -> None:
    libvirt_gives_back(domain, instance)


def libvirt_gives_back(domain: t.Any, instance: Instance) -> None:
    both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, dump(instance), PREFIX, NAMESPACE, both)
    for flag in (libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG):
        assert load(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flag)) == instance
    for flag in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        assert find(ET.fromstring(domain.XMLDesc(flag))) == instance


def filled(text: str) -> Instance:
    """An instance with *text* wherever text may be."""
    return Instance(
        lock=Lock(text, text),
        flavor=Flavor(1, 1, name=text),
        launch=Launch(text, text, text, text, text, text, text, {text: text}),
        disks=(OwnDisk(text, text, text),),
        marks=(Mark(text, text, {text: text}),),
        journal=Journal(text, text, text, 1, text, {text: text}),
        foreign=(dump_element(ET.Element("weight", {"since": text}), text or "x"),),
        policy=Policy(text, 1, (Group(text, text),)),
        origin=Origin(text, text, text, text),
        generation=text,
    )


@pytest.mark.parametrize(
    "text",
    ["", " ", "\t\n ", "\r", "a\r\nb", " a ", "<a>&amp;\"'", "]]>", "&#13;", "größe 𝄞", "\x7f\x85\u2028\ufffd"],
)
def test_text_that_is_special_to_xml_is_nothing_special_to_us(domain: t.Any, text: str) -> None:
    instance = filled(text)
    assert load(dump(instance)) == instance
    assert find(in_domain(dump(instance))) == instance
    libvirt_gives_back(domain, instance)


def test_everything_is_written() -> None:
    fields = {name: getattr(FULL, name) for name in vars(FULL)}
    assert all(fields.values())
    for name in fields:
        without = replace(FULL, **{name: getattr(Instance(), name)})
        assert load(dump(without)) == without != FULL


def test_the_element_is_plain_and_tells_its_schema() -> None:
    root = ET.fromstring(dump(FULL))
    assert (root.tag, root.get("schema")) == ("instance", str(SCHEMA))
    assert [node.tag for node in root] == [
        "lock",
        "flavor",
        "launch",
        "disk",
        "disk",
        "state",
        "state",
        "journal",
        "policy",
        "origin",
        "generation",
        "weight",
    ]


# The characters that XML cannot hold: control characters, halves of surrogate pairs, and two non-characters.
@pytest.mark.parametrize("character", ["\x00", "\x01", "\x0b", "\x1f", "\udfff", "\ufffe", "\uffff"])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: Instance(lock=Lock(SINCE, text)),
        lambda text: Instance(lock=Lock(text)),
        lambda text: replace(FULL, flavor=Flavor(1, 1, name=text)),
        lambda text: replace(FULL, launch=replace(LAUNCH, image=text)),
        lambda text: replace(FULL, disks=(OwnDisk("root", "vda", text),)),
        lambda text: replace(FULL, marks=(Mark("error", SINCE, {text: ""}),)),
        lambda text: replace(FULL, journal=replace(JOURNAL, step=text)),
        lambda text: replace(FULL, policy=Policy(groups=(Group(text, "affinity"),))),
        lambda text: replace(FULL, origin=Origin("kvm2", SINCE, "running", text)),
    ],
)
def test_what_xml_cannot_hold_is_refused(make: t.Callable[[str], Instance], character: str) -> None:
    with pytest.raises(Invalid, match=rf"cannot hold the character U\+{ord(character):04X}, after "):
        dump(make(f"a{character}b"))


def test_the_data_of_a_journal_may_be_any_text() -> None:
    instance = Instance(journal=Journal("delete", SINCE, "kvm1", 1, data={"\x00": "\ud800\uffff"}))
    assert load(dump(instance)) == instance


# ---- reading what others wrote


def test_no_element_is_an_empty_instance() -> None:
    assert load(None) == Instance()
    assert load("<instance schema='1'/>") == Instance()
    assert find(ET.fromstring("<domain/>")) == Instance()
    assert Instance().empty
    assert not FULL.empty


@pytest.mark.parametrize("schema", [SCHEMA + 1, 99])
def test_a_newer_schema_is_unsupported_and_says_so(schema: int) -> None:
    with pytest.raises(Unsupported, match=f"has schema {schema}; .* knows up to {SCHEMA}") as caught:
        load(f"<instance schema='{schema}'><unheard-of/></instance>")
    assert "newer" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no XML",
        "<instance>",
        "<instance schema='one'/>",
        "<instance><lock>no time</lock></instance>",
        "<instance><flavor name='' vcpus='1' memory='1' root='0'/></instance>",
        "<instance><flavor name='' vcpus='one' memory='1' root='0' swap='0'/></instance>",
        "<instance><flavor name='' vcpus='0' memory='1' root='0' swap='0'/></instance>",
        "<instance><flavor name='' vcpus='1' memory='1' root='0' swap='0'><ephemeral/></flavor></instance>",
        "<instance><launch at='' by='' storage=''/></instance>",
        "<instance><launch at='' by='' storage=''><image/><base/></launch></instance>",
        "<instance><disk role='root'>/x</disk></instance>",
        "<instance><state value='error'/></instance>",
        "<instance><state value='error' since=''><data>x</data></state></instance>",
        "<instance><journal/></instance>",
        "<instance><journal action='' since='' node='' pid='x' step=''/></instance>",
        "<instance><journal action='' since='' node='' pid='1' step=''>[]</journal></instance>",
    ],
)
def test_garbage_is_invalid_and_the_way_out_is_told(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(text)
    assert caught.value.code == "invalid"
    assert "metadata" in str(caught.value) or "Flavor" in str(caught.value)


NAMES = st.sampled_from(["lock", "flavor", "launch", "disk", "state", "journal", "data", "ephemeral", "base", "image"])
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(["", "1", "x", "-1"])
        for name in (
            "since",
            "name",
            "vcpus",
            "memory",
            "root",
            "swap",
            "size",
            "at",
            "by",
            "storage",
            "action",
            "node",
        )
    },
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 2) -> ET.Element:
    node = ET.Element(draw(NAMES), draw(ATTRIBUTES))
    node.text = draw(st.sampled_from(["", "{}", "x", "1"]))
    if depth:
        node.extend(draw(st.lists(elements(depth=depth - 1), max_size=2)))
    return node


@given(st.lists(elements(), max_size=3))
def test_whatever_stands_there_is_read_or_refused_and_never_breaks(nodes: list[ET.Element]) -> None:
    root = ET.Element("instance", {"schema": "1"})
    root.extend(nodes)
    try:
        instance = load(root)
    except LifecycleError:
        return
    assert load(dump(instance)) == instance


def test_elements_that_we_do_not_know_survive_with_all_that_is_in_them() -> None:
    weight = '<weight kilos="2" of="3">as <b>it</b> was</weight>'
    text = f"<instance schema='1'>\n  {weight}\n  <lock since='{SINCE}'>audit</lock>\n  <tpm/>\n</instance>"
    for found in (load(text), find(in_domain(text))):
        assert found.foreign == (weight, "<tpm />")
        unlocked = replace(found, lock=None)
        assert load(dump(unlocked)) == unlocked
        assert find(in_domain(dump(unlocked))) == unlocked


# ---- marks


def test_the_newest_mark_is_on_top() -> None:
    instance = Instance().marked(Mark("rescued", "1")).marked(Mark("error", "2"))
    assert instance.mark == Mark("error", "2")
    assert instance.unmarked("error").mark == Mark("rescued", "1")
    assert instance.unmarked("rescued").marks == (Mark("error", "2"),)
    assert Instance().mark is None


def test_a_mark_takes_the_place_of_one_of_the_same_state() -> None:
    instance = Instance().marked(Mark("error", "1")).marked(Mark("rescued", "2")).marked(Mark("error", "3"))
    assert instance.marks == (Mark("rescued", "2"), Mark("error", "3"))


def test_taking_a_mark_away_that_is_not_there_changes_nothing() -> None:
    assert FULL.unmarked("resized") == FULL
