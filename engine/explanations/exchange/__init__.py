"""Read and write explanations in the layouts of other tools: Neuronpedia's JSON lines, delphi's folders of text files.

Refuses files as a whole where one line cannot be read, sources that belong to no member, and features that the SAEs lack.
Scores are taken from records of contexts alone: figures that others computed are not comparable.
"""
