"""Orders become bundles and a user log; one file of order lines becomes a whole dataset folder."""

import json

import pytest

from bundle_mllm.data import SPLITS, DatasetFolder, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_orders, import_tabular
from bundle_mllm.importers.times import to_seconds


def lines(number=40, start=1000):
    """Orders of three items each, one a day, of five customers; each shares no two items with another."""
    return [
        {
            "order_id": str(start + n),
            "sku": f"{(n * 7 + step * (n % 25 + 1)) % 60:03d}",
            "quantity": "1",
            "created_at": f"2024-{1 + n // 28:02d}-{1 + n % 28:02d} 10:00:00 +0100",
            "customer_id": f"c{n % 5}",
        }
        for n in range(number)
        for step in range(3)
    ]


@pytest.fixture
def order_shop(shop):
    (shop / "bundles.jsonl").unlink()
    (shop / "interactions.csv").unlink()
    return shop


def bundles_of(folder):
    return {bundle.bundle_id: set(bundle.items) for bundle in DatasetFolder.open(folder).bundles}


def of(rows, order_id):
    return {row["sku"] for row in rows if row["order_id"] == order_id}


def test_order_lines_become_bundles_by_their_usual_names(order_shop, tmp_path):
    rows = lines()
    write_records(order_shop / "orders.csv", rows)
    summary = import_tabular(order_shop, tmp_path / "data")
    assert bundles_of(tmp_path / "data") == {i: of(rows, i) for i in dict.fromkeys(r["order_id"] for r in rows)}
    assert any("item_id=sku, timestamp=created_at, user_id=customer_id" in warning for warning in summary.warnings)
    assert json.loads((tmp_path / "data" / "import.json").read_text())["made_of"] == "orders"


def test_the_log_lacks_the_orders_that_are_bundles(order_shop, tmp_path):
    rows = lines()
    write_records(order_shop / "orders.csv", [*rows, {**rows[0], "order_id": "9", "sku": "055"}])
    summary = import_tabular(order_shop, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    assert all(folder.bundles[split] for split in SPLITS)
    log = folder.interactions
    pairs = zip(log.user_index, log.rows, strict=True)
    assert [(log.users[user], folder.catalog.item_ids[row]) for user, row in pairs] == [
        ("c0", "055")  # of an order of one item, which is no bundle
    ]
    assert summary.dropped["orders that became bundles, left out of the user log"] == len(folder.bundles)


def test_splits_by_time_put_the_newest_last_and_keep_later_orders_out_of_the_log(order_shop, tmp_path):
    rows = lines()
    rows.append({**rows[-1], "order_id": "9999", "sku": "055", "created_at": "2024-12-31 10:00:00 +0100"})
    rows.append({**rows[0], "order_id": "9", "sku": "056"})
    write_records(order_shop / "orders.csv", rows[::-1])
    import_tabular(order_shop, tmp_path / "data", split_by="time")
    folder = DatasetFolder.open(tmp_path / "data")
    assert [sorted(b.bundle_id for b in folder.bundles[s])[0] for s in ("train", "validation", "test")] == [
        *("1000", "1032", "1036"),
    ]
    assert [len(folder.bundles[split]) for split in ("train", "validation", "test")] == [32, 4, 4]
    log = folder.interactions
    assert [folder.catalog.item_ids[row] for row in log.rows] == ["056"]  # "055" was bought after the first of test
    with pytest.raises(BundleMLLMError, match="1 orders have no time, such as '1000'"):
        write_records(
            order_shop / "orders.csv", [{**r, "created_at": None} if r["order_id"] == "1000" else r for r in rows]
        )
        import_tabular(order_shop, tmp_path / "other", split_by="time")


def test_returns_and_cancellations_are_taken_off(order_shop, tmp_path):
    rows = lines()
    first, second, third = ({**rows[3 * n]} for n in range(3))
    returned = {**first, "quantity": "-1"}
    part = {**second, "quantity": "-1"}
    rows[3]["quantity"] = "2"  # of which one comes back
    cancelled = [{**row, "order_id": f"C{row['order_id']}", "quantity": "-1"} for row in rows[6:9]]
    unknown = {**third, "order_id": "C5555", "quantity": "-3"}
    write_records(order_shop / "orders.csv", [*rows, returned, part, *cancelled, unknown])
    summary = import_tabular(order_shop, tmp_path / "data")
    found = bundles_of(tmp_path / "data")
    assert found["1000"] == of(rows, "1000") - {first["sku"]}
    assert found["1001"] == of(rows, "1001")
    assert "1002" not in found and not any(number.startswith("C") for number in found)
    assert summary.dropped["cancellations (their number has a C before it), which are no orders"] == 2
    assert summary.dropped["items of orders that were returned or cancelled, taken out of them"] == 1 + 3


def test_numbers_that_all_begin_with_c_are_no_cancellations(order_shop, tmp_path):
    write_records(order_shop / "orders.csv", [{**row, "order_id": f"C{row['order_id']}"} for row in lines()])
    import_tabular(order_shop, tmp_path / "data")
    assert len(bundles_of(tmp_path / "data")) == 40


def test_limits_on_size_and_support_and_excluded_ids(order_shop, tmp_path):
    rows = lines()
    rows += [{**rows[0], "order_id": "big", "sku": f"{n:03d}"} for n in range(20)]
    rows += [{**rows[0], "order_id": "small", "sku": "000"}]
    rows += [{**row, "sku": "POST"} for row in lines()[::3]]
    write_records(order_shop / "orders.csv", rows)
    summary = import_tabular(order_shop, tmp_path / "data", order_size=(3, 10), exclude=("POST",))
    found = bundles_of(tmp_path / "data")
    assert len(found) == 40 and "big" not in found and "small" not in found
    assert summary.dropped["order lines of excluded ids, left out"] == 40
    assert summary.dropped["orders of more than 10 items, which are no bundles"] == 1
    assert summary.dropped["orders of fewer than 3 items, which are no bundles"] == 1
    import_tabular(order_shop, tmp_path / "frequent", min_support=3, exclude=("POST",))
    support = {
        i: sum(i in items for items in found.values()) + (int(i) < 20) + (i == "000")
        for i in map("{:03d}".format, range(60))
    }
    kept = set().union(*bundles_of(tmp_path / "frequent").values())
    assert kept and all(support[item_id] >= 3 for item_id in kept)
    with pytest.raises(BundleMLLMError, match="order_size is 5 to 4, which no order has"):
        import_tabular(order_shop, tmp_path / "other", order_size=(5, 4))


def test_blank_orders_unknown_items_and_odd_quantities_are_counted_or_named(order_shop, tmp_path):
    rows = lines()
    rows += [
        {**rows[0], "sku": ""},
        {**rows[0], "order_id": " "},
        *({**rows[0], "order_id": f"new {number}", "sku": "gone"} for number in range(3)),
        {**rows[0], "quantity": ""},
    ]
    write_records(order_shop / "orders.csv", rows)
    summary = import_tabular(order_shop, tmp_path / "data")
    for what in (
        "order lines without an item, left out",
        "order lines without an order, left out",
    ):
        assert summary.dropped[what] == 1
    assert "3 entries of orders whose item the catalog lacks, left out (1 item): 'gone' in 'new 0'" in str(summary)
    write_records(order_shop / "orders.csv", [*rows, {**rows[0], "quantity": "many"}, {**rows[0], "quantity": "nan"}])
    with pytest.raises(BundleMLLMError, match=r"2 problems .*orders.csv line 128 has the quantity 'many'.*line 129"):
        import_tabular(order_shop, tmp_path / "other")
    write_records(order_shop / "orders.csv", [{**row, "sku": f"{row['sku']}.0"} for row in rows])
    with pytest.raises(
        BundleMLLMError, match=r"None of the \d+ entries of orders \(\d+ different items\) is in the .*without the \.0"
    ):
        import_tabular(order_shop, tmp_path / "other")
    (order_shop / "orders.csv").write_text("order;sku\n1;2\n")
    with pytest.raises(BundleMLLMError, match=r"orders.csv line 2 has no `order_id` .*set the delimiter to ';'"):
        import_tabular(order_shop, tmp_path / "other")
    write_records(order_shop / "orders.csv", [{"number": "1", "what": "2"}])
    with pytest.raises(BundleMLLMError, match=r"orders.csv line 2 has no `order_id` \(its columns: number, what\)"):
        import_tabular(order_shop, tmp_path / "other")


def test_orders_and_bundles_together_are_refused(shop, tmp_path):
    write_records(shop / "orders.csv", lines())
    with pytest.raises(BundleMLLMError, match=r"bundles.jsonl and orders.csv both make bundles: keep one"):
        import_tabular(shop, tmp_path / "data")


@pytest.fixture
def retail(tmp_path):
    """One file of order lines like those of a well-known gift shop: descriptions, cancellations, no product table."""
    path = tmp_path / "retail.csv"
    rows = [
        {
            "Invoice": row["order_id"],
            "StockCode": row["sku"],
            "Description": f"THING {int(row['sku'])} ",
            "Quantity": "6",
            "InvoiceDate": f"{1 + n // 84}/{1 + n // 3 % 28}/2010 8:26",
            "Price": "2.55",
            "Customer ID": row["customer_id"] if n % 4 else "",
            "Country": "France",
        }
        for n, row in enumerate(lines())
    ]
    some = rows[0]
    rows += [
        {**some, "Invoice": "1001", "Description": "thing nought"},
        {**some, "Invoice": "C2000", "Quantity": "-6"},
        {**some, "Invoice": "2001", "Quantity": "-3", "Description": "damaged?", "Customer ID": ""},
        {**some, "Invoice": "2001", "Quantity": "-3", "Description": "damaged?"},
        {**some, "Invoice": "2001", "Quantity": "-3", "Description": "damaged?"},
        {**some, "StockCode": "", "Description": "Manual"},
    ]
    write_records(path, rows)
    return path


def test_a_single_file_of_order_lines_is_enough(retail, tmp_path):
    summary = import_orders(retail, tmp_path / "data", split_by="time")
    folder = DatasetFolder.open(tmp_path / "data")
    rows = lines()
    assert set(folder.catalog.item_ids) == {row["sku"] for row in rows}
    first = folder.catalog[folder.catalog.row(rows[0]["sku"])]
    assert (first.title, dict(first.extra)) == ("THING 0", {"price": 2.55})
    assert len(folder.bundles) == 40 and "2001" not in bundles_of(tmp_path / "data")
    text = str(summary)
    assert (
        "1 items with several spellings of their title, of which the most frequent was taken: '000': 'THING 0' ("
        in text
    )
    assert "rather than 'thing nought' (1)" in text
    assert "columns of orders that say nothing about items were left out: Country." in summary.warnings
    assert summary.dropped["order lines without an item, left out"] == 1
    assert summary.dropped["cancellations (their number has a C before it), which are no orders"] == 1
    assert folder.bundles.test[0].bundle_id == "1036"
    assert folder.interactions is None  # every order is a bundle


def test_a_folder_of_one_table_is_enough_too_and_columns_can_be_mapped(retail, tmp_path):
    (tmp_path / "source").mkdir()
    retail.rename(tmp_path / "source" / "retail.csv")
    import_orders(tmp_path / "source", tmp_path / "data", columns={"category": "Country"})
    assert DatasetFolder.open(tmp_path / "data").catalog[0].category == "France"
    (tmp_path / "source" / "other.csv").write_text("a\n1\n")
    with pytest.raises(BundleMLLMError, match=r"not just one table \(other.csv, retail.csv\): name it, orders=FILE"):
        import_orders(tmp_path / "source", tmp_path / "other")
    import_orders(tmp_path / "source", tmp_path / "other", tables={"orders": "retail.csv"})


@pytest.mark.parametrize(
    "texts",
    [
        ["2024-01-31 10:00", "2024-02-01 09:00"],
        ["2024-01-31T10:00:00+01:00", "2024-01-31 10:00:00 +0000"],
        ["2024-01-31 10:00:00 UTC", "2024-02-01 10:00:00 UTC"],
        ["1/31/2010 8:26", "2/1/2010 8:25"],
        ["31.01.2010 08:26", "01.02.2010 08:25"],
        ["31/01/2010", "01/02/2010"],
        ["01/31/2010 11:59 PM", "02/01/2010 12:01 AM"],
        ["1700000000", "1700000000.5"],
        ["20240131", "20240201"],
    ],
)
def test_times_of_one_format_keep_their_order(texts):
    earlier, later = to_seconds(texts)
    assert earlier < later


def test_times_whose_day_and_month_could_be_exchanged_are_refused():
    with pytest.raises(BundleMLLMError, match="'1/2/2010 8:26', could have the day or the month first"):
        to_seconds(["1/2/2010 8:26", "3/4/2010 8:26"])
    with pytest.raises(BundleMLLMError, match="'soon' is no time"):
        to_seconds(["1/31/2010 8:26", "soon"])
    assert to_seconds(["1/1/2010 8:26", "2/2/2010 8:26"]) == sorted(to_seconds(["1/1/2010 8:26", "2/2/2010 8:26"]))
