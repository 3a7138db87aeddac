"""The table of what does not apply names tests; that these fail or skip themselves, conftest.py sees to."""

from not_applicable import NOT_APPLICABLE


def test_each_line_of_the_table_names_a_test(named):
    assert set(NOT_APPLICABLE) - named == set()
