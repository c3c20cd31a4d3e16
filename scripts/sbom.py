"""The software bill of materials of a release: the library and what it needs at run time, as CycloneDX 1.6."""

from __future__ import annotations

import hashlib
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

_LICENSE_CLASSIFIERS: Final = {"License :: OSI Approved :: MIT License": "MIT"}
"""For packages that name their license by a classifier only."""


def describe(wheel: Path, epoch: int) -> str:
    """The SBOM of a wheel, as JSON: the same text for the same wheel, time and installed dependencies.

    Args:
        wheel: the library's. Its dependencies are described as they are installed beside this script, since these
            versions are the ones that the release was tested with.
        epoch: when it was made, in seconds since 1970.
    """
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(name).decode())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    library = _component(told, [HashType(alg=HashAlgorithm.SHA_256, content=digest)])
    bom = Bom(
        metadata=BomMetaData(component=library, timestamp=datetime.fromtimestamp(epoch, UTC)),
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, digest),
    )
    components = {canonicalize_name(library.name): library}
    waiting = [(library, told)]
    while waiting:
        user, told = waiting.pop()
        needed = []
        for required in _required(told):
            if required not in components:
                told_of_it = _installed(required)
                components[required] = _component(told_of_it)
                bom.components.add(components[required])
                waiting.append((components[required], told_of_it))
            needed.append(components[required])
        bom.register_dependency(user, needed)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _required(told: Message) -> Iterator[NormalizedName]:
    """The names of the packages that a package needs here, its extras apart."""
    for text in told.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def _installed(name: str) -> Message:
    return Parser().parsestr(metadata.distribution(name).read_text("METADATA") or "")


def _component(told: Message, hashes: Iterable[HashType] = ()) -> Component:
    name, version = told["Name"], told["Version"]
    classified = [_LICENSE_CLASSIFIERS.get(text) for text in told.get_all("Classifier", [])]
    known = told["License-Expression"] or next(filter(None, classified), None) or told["License"]
    purl = PackageURL("pypi", name=canonicalize_name(name), version=version)
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        description=told["Summary"],
        purl=purl,
        bom_ref=str(purl),
        hashes=hashes,
        licenses=[LicenseFactory().make_from_string(known)] if known else (),
    )
