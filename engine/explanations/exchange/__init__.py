"""Explanations in the layouts of others: Neuronpedia's JSON lines, delphi's folders of text files."""
