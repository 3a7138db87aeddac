import os
import random

import pytest

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_bundlerec


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def domain(tmp_path):
    """A domain with the published columns and quirks: 40 items, 30 bundles, users who have made one or two of them."""
    folder = tmp_path / "domain"
    folder.mkdir()
    rng = random.Random(0)
    bundles = [rng.sample(range(40), rng.randint(2, 5)) for _ in range(30)]
    write(
        folder / "bundle_item.csv",
        "bundle ID,item ID",
        *(f"{b},{i}" for b, items in enumerate(bundles) for i in items),
    )
    titles = [f'{n},"Thing {n}, large"' for n in range(38)]
    write(folder / "item_titles.csv", "item ID,titles", *titles, '38,"Salt &amp; Pepper  "', "39,Tea")
    paths = ["[[]]", '"[[Food,Coffee, Tea & Cocoa,Tea],[Gifts]]"', *['"[[Home,Kitchen]]"'] * 38]
    write(folder / "item_categories.csv", "item ID,categories", *(f"{n},{path}" for n, path in enumerate(paths)))
    write(folder / "item_idx_mapping.csv", "item ID,source ID", *(f"{n},B{n:03d}" for n in range(50)))
    intents = [f"{n},purpose {n}" for n in range(1, 30)]
    write(folder / "bundle_intent.csv", "bundle ID,intent", '0,"\nEarl  Grey\n"', *intents)
    rows = [f"{b // 2},{i},14{b}" for b, items in enumerate(bundles) for i in items]
    write(folder / "user_item.csv", "user ID,item ID,timestamp", *rows, rows[0], "3,77,5")
    write(folder / "user_item_pretrain.csv", "user ID,item ID", *(f"{u},{u % 60}" for u in range(200)))
    return folder


def test_a_domain_becomes_a_dataset_folder_with_questions(domain, tmp_path):
    summary = import_bundlerec(domain, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    assert folder.catalog[5].title == "Thing 5, large"
    assert folder.catalog[38].title == "Salt & Pepper"
    assert (folder.catalog[0].category, folder.catalog[1].category) == (None, "Tea")
    assert folder.catalog[1].extra["category_paths"] == [["Food", "Coffee, Tea & Cocoa", "Tea"], ["Gifts"]]
    assert folder.catalog[7].extra["source_id"] == "B007"
    bundles = {bundle.bundle_id: bundle for bundle in folder.bundles}
    expected: dict[str, list[str]] = {}
    for line in (domain / "bundle_item.csv").read_text().splitlines()[1:]:
        expected.setdefault(line.split(",")[0], []).append(line.split(",")[1])
    assert {bundle_id: [*bundle.items] for bundle_id, bundle in bundles.items()} == expected
    assert (bundles["0"].name, bundles["4"].name) == ("Earl Grey", "purpose 4")
    assert (summary.num_items, sum(summary.num_bundles.values())) == (40, 30)
    assert make_questions(folder.bundles.test, folder.catalog, folder.bundles, seed=0)
    assert any("intents are about whole bundles" in warning for warning in summary.warnings)


def test_the_log_of_bundle_membership_is_left_out_unless_it_is_chosen(domain, tmp_path):
    summary = import_bundlerec(domain, tmp_path / "none")
    assert DatasetFolder.open(tmp_path / "none").interactions is None
    assert any("user_item.csv was left out: it repeats which items" in warning for warning in summary.warnings)

    summary = import_bundlerec(domain, tmp_path / "user_item", interactions="user_item")
    num_items = len((domain / "bundle_item.csv").read_text().splitlines()) - 1
    interactions = DatasetFolder.open(tmp_path / "user_item").interactions
    assert num_items - 15 < len(interactions) <= num_items
    assert summary.dropped["interactions with an item that the catalog lacks, left out"] == 1
    held_out = summary.num_bundles["validation"] + summary.num_bundles["test"]
    assert f"has all items of {held_out} of the {held_out} validation and test bundles" in summary.warnings[-1]
    assert "do not fit features on it" in summary.warnings[-1]


def test_the_wider_log_is_measured_too(domain, tmp_path):
    summary = import_bundlerec(domain, tmp_path / "data", interactions="pretrain")
    assert len(DatasetFolder.open(tmp_path / "data").interactions) == 140
    assert summary.dropped["interactions with an item that the catalog lacks, left out"] == 60
    assert summary.warnings[-1].startswith("user_item_pretrain.csv has all items of 0 of the 6 validation and test")
    assert "do not fit" not in summary.warnings[-1]


def test_the_seed_decides_the_bytes(domain, tmp_path, same_tree):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        import_bundlerec(domain, tmp_path / name, seed=seed, interactions="user_item")
    assert same_tree(tmp_path / "a", tmp_path / "b")
    assert not same_tree(tmp_path / "a", tmp_path / "c")


def test_tabs_and_other_spellings_of_columns_are_read(domain, tmp_path, same_tree):
    import_bundlerec(domain, tmp_path / "expected", interactions="user_item")
    for name in ("bundle_item.csv", "user_item.csv"):
        text = (domain / name).read_text().replace(",", "\t").replace("bundle ID", "bundle_id")
        (domain / name).write_text(text)
    import_bundlerec(domain, tmp_path / "data", interactions="user_item")
    assert same_tree(tmp_path / "expected", tmp_path / "data")


def test_two_files_are_enough(domain, tmp_path):
    for name in os.listdir(domain):
        if name not in ("bundle_item.csv", "item_titles.csv"):
            (domain / name).unlink()
    summary = import_bundlerec(domain, tmp_path / "data", strict=True)
    folder = DatasetFolder.open(tmp_path / "data")
    assert summary.warnings == ()
    assert folder.catalog[1].category is None
    assert folder.bundles.train[0].name is None


def test_rows_about_nothing_known_are_counted_or_refused(domain, tmp_path):
    with open(domain / "bundle_item.csv", "a") as file:
        file.write("0,99\n")
    with open(domain / "item_categories.csv", "a") as file:
        file.write("99,[[Home]]\n")
    with open(domain / "bundle_intent.csv", "a") as file:
        file.write("99,purpose\n")
    summary = import_bundlerec(domain, tmp_path / "data")
    assert summary.dropped == {
        "entries of bundles whose item the catalog lacks, taken out of them": 1,
        "categories of items without a title row, left out": 1,
        "intents of bundles without items, left out": 1,
    }
    with pytest.raises(BundleMLLMError, match="1 intents of bundles without items"):
        import_bundlerec(domain, tmp_path / "strict", strict=True)
    assert sorted(os.listdir(tmp_path)) == ["data", "domain"]


BAD = {
    "two titles": (
        "item_titles.csv",
        "item ID,titles\n1,a\n1,b\n",
        r"item_titles.csv line 3 contradicts line 2 about the item '1'",
    ),
    "two categories": (
        "item_categories.csv",
        "item ID,categories\n1,[[a]]\n1,[[b]]\n",
        "line 3 gives the item '1' ano",
    ),
    "a category that is no path": (
        "item_categories.csv",
        "item ID,categories\n1,Home\n",
        "line 2 has the categories 'Ho",
    ),
    "a bundle without id": (
        "bundle_item.csv",
        "bundle ID,item ID\n0,1\n,2\n",
        "bundle_item.csv line 3 has the id None",
    ),
    "a cell too few": ("bundle_item.csv", "bundle ID,item ID\n0,1\n0\n", "bundle_item.csv line 3 has 1 cells"),
    "another header": ("bundle_item.csv", "bundle,item\n0,1\n", "bundle_item.csv has no `bundle_id`"),
    "an empty file": ("bundle_intent.csv", "", "bundle_intent.csv has no `bundle_id`"),
    "two intents": (
        "bundle_intent.csv",
        "bundle ID,intent\n0,a\n0,b\n",
        "line 3 gives the bundle '0' a second intent",
    ),
    "a log row cut off": (
        "user_item.csv",
        "user ID,item ID,timestamp\n0,1,2\n0,1\n",
        "user_item.csv row 2 has 2 cells",
    ),
    "a log without users": ("user_item.csv", "item ID\n1\n", "user_item.csv has no `user_id`"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_refused_by_file_and_row_and_leaves_nothing(domain, tmp_path, name):
    file, content, message = BAD[name]
    (domain / file).write_text(content)
    with pytest.raises(BundleMLLMError, match=message):
        import_bundlerec(domain, tmp_path / "data", interactions="user_item")
    assert os.listdir(tmp_path) == ["domain"]


def test_what_is_no_domain_is_refused(domain, tmp_path):
    with pytest.raises(BundleMLLMError, match="give one of its folders domain"):
        import_bundlerec(tmp_path, tmp_path / "data")
    with pytest.raises(BundleMLLMError, match="There is no folder"):
        import_bundlerec(tmp_path / "nowhere", tmp_path / "data")
    (domain / "item_titles.csv").unlink()
    with pytest.raises(BundleMLLMError, match=r"holds no item_titles\.csv: copy the whole folder"):
        import_bundlerec(domain, tmp_path / "data")


def test_chosen_interactions_must_exist(domain, tmp_path):
    (domain / "user_item_pretrain.csv").unlink()
    with pytest.raises(BundleMLLMError, match=r"There is no file .*user_item_pretrain\.csv"):
        import_bundlerec(domain, tmp_path / "data", interactions="pretrain")
    with pytest.raises(BundleMLLMError, match="interactions is 'all': choose one of 'none', 'pretrain', 'user_item'"):
        import_bundlerec(domain, tmp_path / "data", interactions="all")
