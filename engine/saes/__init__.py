"""Sparse autoencoders: one class for all architectures, with a leading member axis, and how its tensors are used.

`convention` says how a forward pass is computed, `sae` computes, digests, saves and loads it, `encode` runs rows through it,
`folding` rewrites it, `importers` and `saelens` read and write other libraries' files. It refuses SAEs whose forward pass no
`Convention` describes, rather than approximate them; and it knows no language model and no study.
"""
