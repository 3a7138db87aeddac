"""Bars tell how far each part is, how fast it goes and how long it takes."""

from bundle_mllm.progress import progress_bars


def test_each_part_has_a_bar_with_rate_and_remaining_time(capsys):
    with progress_bars() as show:
        for done in (2, 4):
            show("visual", done, 4)
        show("textual", 7, 7)
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    assert [line.split(":")[0] for line in lines if line.strip()] == ["visual", "textual"]
    assert "4/4 [" in lines[0] and "/s]" in lines[0]


def test_nothing_to_do_draws_nothing(capsys):
    with progress_bars():
        pass
    assert capsys.readouterr().err == ""
