"""`seedscope public`: public sets of SAEs that differ by their seed, and how `import` names them."""

from seedscope.app.cli.options import app


@app.command()
def public() -> None:
    """List public sets of SAEs that differ by their seed; `import` takes them as public:NAME/FOLDER.

    Example: seedscope public
    """
    from seedscope.engine.saes.importers.public import NO_SAES, PREFIX, SETS

    for each in SETS:
        print(f"{PREFIX}{each.name}  (hf:{each.repository})")
        print(f"  model {each.model}; hook point {each.hookpoint}; seeds {each.seeds}")
        print(f"  names {each.layout}; size {each.size}")
        print(f"  files {each.files}; licence {each.license}")
    print(NO_SAES)
