"""What may be given as the definition of a mob."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobd.content import dump
from mobd.v1 import mobs_pb2

#: A mapping; the path of a .yaml, .yml, .json or .toml file; YAML or JSON text; or a message.
Definition = Mapping[str, Any] | str | Path | mobs_pb2.DefinitionDocument


def document_of(definition: Definition) -> mobs_pb2.DefinitionDocument:
    """Return the document that a definition is sent as.

    A str of one line that ends like a file name is the path of that file; any other str is the text itself.
    """
    if isinstance(definition, mobs_pb2.DefinitionDocument):
        return definition
    if isinstance(definition, Path):
        return _file(definition)
    if isinstance(definition, str):
        if "\n" not in definition and definition.endswith((".yaml", ".yml", ".json", ".toml")):
            return _file(Path(definition))
        if definition.lstrip().startswith("{"):
            return mobs_pb2.DefinitionDocument(json=definition)
        return mobs_pb2.DefinitionDocument(yaml=definition)
    return mobs_pb2.DefinitionDocument(json=dump(dict(definition)))


def _file(path: Path) -> mobs_pb2.DefinitionDocument:
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".yaml" | ".yml":
            return mobs_pb2.DefinitionDocument(yaml=text)
        case ".json":
            return mobs_pb2.DefinitionDocument(json=text)
        case ".toml":
            return mobs_pb2.DefinitionDocument(toml=text)
        case _:
            raise ValueError(f"{path}: a definition is a .yaml, .yml, .json or .toml file")
