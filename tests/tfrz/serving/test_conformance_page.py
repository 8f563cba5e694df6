"""The page of what holds and what deviates names the suite as it is."""

from tests.tfrz.serving.conformance_page import PAGE, declared


def test_the_page_lists_every_mark_and_nothing_else():
    text = PAGE.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    listed = {
        (cells[1].replace("\\|", "|"), cells[2].strip("`"))
        for cells in rows
        if cells[0].strip("| ")[:1].isdigit()
    }
    assert listed == declared(), "run make conformance"


def test_nothing_on_the_page_failed():
    text = PAGE.read_text()
    assert "**" not in text
    assert text.count("| held |") > 100
