"""XML as untrusted input: elements, attributes and text alone, within bounds; no document type, entity or reference.

Everything that makes XML dangerous (entities that expand without end, files and addresses that a parser fetches) needs
a document type declaration, and no file of annotations needs one: it is refused.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from lesionaug.data.slices import SourceFile
from lesionaug.data.sources.dicom_file import EXPORT_AGAIN, reading
from lesionaug.errors import DataError

MAX_BYTES = 8 << 20
MAX_DEPTH = 100  # elements within each other; annotations have about 15
MAX_ELEMENTS = 500_000
MAX_ATTRIBUTES = 100  # of one element

_SEPARATOR = " "  # between a namespace and a name; it can stand in neither


def local_name(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition(_SEPARATOR)[2]


def read_xml(source: SourceFile) -> Element:
    """Read an XML file; all names come without their namespaces.

    Args:
        source: The file, in an encoding that it states, UTF-8 where it states none.

    Raises:
        DataError: When it is too large, no well-formed XML, declares a document type or entities, or nests too deep.
    """
    where = source.name
    if source.size > MAX_BYTES:
        raise DataError(where, f"an XML file may have at most {MAX_BYTES >> 20} MiB", "Split it")
    with reading(where):
        content = source.path.read_bytes()
    tree = TreeBuilder()
    depth = count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > MAX_DEPTH or count > MAX_ELEMENTS or len(attributes) > MAX_ATTRIBUTES:
            rule = (
                f"XML may have {MAX_ELEMENTS} elements, {MAX_DEPTH} within each other, {MAX_ATTRIBUTES} attributes each"
            )
            raise DataError(where, rule, "Split the file, or export it again")
        tree.start(local_name(name), {local_name(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        tree.end(local_name(name))

    def refuse(*_: object) -> int:
        raise DataError(
            where, "XML with a document type declaration or entities is not read", "Export it again without a DOCTYPE"
        )

    parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, tree.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.UnparsedEntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.SkippedEntityHandler = refuse
    try:
        parser.Parse(content, True)
    except DataError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:
        rule = f"the file is no well-formed XML in an encoding that can be read ({str(error)[:80]})"
        raise DataError(where, rule, EXPORT_AGAIN) from error
    return tree.close()


def root_names(head: bytes) -> set[str]:
    """The names that the start of an XML file gives its root element and its document type, without namespaces.

    Args:
        head: The first bytes of the file; nothing that they declare is expanded or fetched.
    """
    names: set[str] = set()

    def element(name: str, _: dict[str, str]) -> None:
        names.add(local_name(name))
        raise StopIteration

    def document_type(name: str, *_: object) -> None:
        names.add(name.rpartition(":")[2])

    parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = document_type
    try:
        parser.Parse(head, False)
    except (StopIteration, expat.ExpatError, LookupError, ValueError):
        return names  # what is wrong with it is said by whoever reads it whole
    return names
