"""SAEs of other libraries, read from their files into one neutral form, `imported.Imported`; one module per format.

`recognise` tells formats apart, `ensemble` reads one SAE or several as members. No file is executed: pickles are parsed by
`unpickle`, which calls nothing that they name. Files are refused, with the reason and what to do, where they are truncated,
where a setting that changes the activations is missing, and where no `Convention` describes the forward pass.
"""
