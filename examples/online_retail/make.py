"""Make the shipped example from the publisher's data: python examples/online_retail/make.py RAW.parquet

RAW is UCI "Online Retail" (doi 10.24432/C5BW33) as Parquet or CSV with the publisher's columns. The resulting
interactions have one row for each product on an invoice. Returns, rows without a customer, and codes that are not
products (postage, fees, vouchers, samples) are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

PRODUCT = r"^(\d{5}[A-Za-z]{0,2}|DCGS\w+)$"


def main(raw: Path, folder: Path) -> None:
    """Write interactions, items and users as Parquet into `folder`."""
    table = pa.csv.read_csv(raw) if raw.suffix == ".csv" else pq.read_table(raw)
    kept = pc.and_(
        pc.and_(pc.greater(table["Quantity"], 0), pc.is_valid(table["CustomerID"])),
        pc.match_substring_regex(table["StockCode"], PRODUCT),
    )
    table = table.filter(kept)
    rows = pa.table(
        {
            "user_id": table["CustomerID"].cast(pa.int32()),
            "item_id": pc.utf8_upper(table["StockCode"]),
            "timestamp": table["InvoiceDate"].cast(pa.timestamp("s")),
            "invoice": table["InvoiceNo"],
            "row": pa.array(range(table.num_rows)),
            "title": pc.utf8_trim_whitespace(table["Description"]),
            "country": table["Country"],
        }
    )
    first = rows.group_by(["user_id", "item_id", "invoice"]).aggregate([("timestamp", "min"), ("row", "min")])
    # All rows of an invoice have the same time. Within an invoice, rows keep the publisher's order.
    first = first.sort_by([("user_id", "ascending"), ("timestamp_min", "ascending"), ("row_min", "ascending")])
    first = first.rename_columns({"timestamp_min": "timestamp"}).select(["user_id", "item_id", "timestamp"])
    # A product's title is its most frequent description. A customer's country is that of the latest purchase.
    titles = rows.group_by(["item_id", "title"]).aggregate([([], "count_all")])
    titles = titles.sort_by([("count_all", "descending"), ("title", "ascending")])
    items = titles.group_by("item_id", use_threads=False).aggregate([("title", "first")])
    latest = rows.sort_by([("timestamp", "descending")])
    users = latest.group_by("user_id", use_threads=False).aggregate([("country", "first")])
    items = items.rename_columns({"title_first": "title"}).sort_by("item_id")
    users = users.rename_columns({"country_first": "country"}).sort_by("user_id")
    for name, part in (("interactions", first), ("items", items), ("users", users)):
        pq.write_table(part, folder / f"{name}.parquet", compression="zstd", compression_level=19)
        print(f"{name}: {part.num_rows} rows, {(folder / f'{name}.parquet').stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(__file__).parent)
