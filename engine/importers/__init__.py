"""SAE checkpoints of the field's libraries, in one neutral form."""

from engine.importers.ensemble import FORMATS, read, read_many
from engine.importers.hub import local
from engine.importers.imported import Imported
from engine.importers.recognise import Found, recognise

__all__ = ["FORMATS", "Found", "Imported", "local", "read", "read_many", "recognise"]
