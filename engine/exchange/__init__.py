"""Explanations in the layouts of others: Neuronpedia's JSON lines, delphi's folders of text files."""

from engine.exchange import delphi, neuronpedia
from engine.exchange.records import Found, Scored, Seeds, SeedsInNames

__all__ = ["Found", "Scored", "Seeds", "SeedsInNames", "delphi", "neuronpedia"]
