"""An index from your own records: text in any script, pictures if you have them, relations between entries."""

import tempfile
from pathlib import Path

from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.record import Record

RECORDS = [
    Record("kea", "Kea", "The kea is a large parrot of New Zealand's alpine zone.", relations={"lives in": ("nz",)}),
    Record("nz", "New Zealand", "New Zealand lies in the south-western Pacific Ocean."),
]

with tempfile.TemporaryDirectory() as folder, LocalIndex(Path(folder) / "birds.index", create=True) as index:
    report = add_records(index, RECORDS)  # with `embedder`, pictures become vectors, too
    print(f"{report.added} added in {report.seconds:.2f} s")
    for hit in index.search("alpine parrot", k=1, expand=1):
        print(f"{hit.title}: {hit.text}")
