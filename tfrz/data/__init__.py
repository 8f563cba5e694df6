"""From files to records, from records to examples, and from examples to model inputs.

A folder for each type of record:

    impressions/    a row is an example: features and a label
    histories/      interactions; the catalogue of items
    lists/          documents by query
    logs/           histories with rewards and propensities: readers only; the rest is shared
    timelines/      years of events, summed into sketches

Each folder has those of these modules that it needs: `spec` (the columns and the configuration),
`readers` (your own files, simulated data), `examples` (a table of rows to a table of examples),
`beam` (the same for sources of any size), and `transform` (examples to model inputs).

Shared modules are next to the folders: `spec` (`Feature`, `Spec`), `columns` (Arrow), `transform`,
`tft_analyzers` and `beam`, `splits`, `user_embeddings` (joining examples with stored embeddings of
their users), `summary`; `sources/` opens files and archives and has the known data sets;
`simulators/` generates records from known distributions.

`records` has a row for each type of record and for each known data set, and `open_source`. To
follow a CSV file to tensors: `records.open_source` → `sources/tabular.py` → (`<type>/readers.py` →
`<type>/examples.py`) → `<type>/transform.py`.

To extend it: a data set is a reader in `sources/` and a row in `records.SOURCES`; a
type of record is a folder and a row in `records.RECORD_TYPES`. Nothing here knows of models,
training or TFX.
"""
