import contextlib
import io

from autollm_jax import progress_bar as module
from autollm_jax.progress_bar import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(output):
    return [line.strip() for line in output.getvalue().splitlines() if line.strip()]


def test_a_file_has_a_line_at_the_start_and_at_the_end():
    with contextlib.redirect_stderr(io.StringIO()) as output:
        assert list(progress_bar(range(100), "distill", unit="step")) == list(range(100))
    first, last = lines_of(output)
    assert first.startswith("distill: 0/100 [") and last.startswith("distill: 100/100 [")


def test_a_file_has_a_line_once_its_seconds_are_over(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    with contextlib.redirect_stderr(io.StringIO()) as output:
        with progress_bar(total=3, desc="grpo", unit="step") as bar:
            for done in (1, 2, 3):
                bar.update()
                assert lines_of(output)[-1].startswith(f"grpo: {done}/3 [")


def test_what_stands_behind_a_line_makes_no_more_lines_and_all_rounds_count(monkeypatch):
    with contextlib.redirect_stderr(io.StringIO()) as output:
        bar = progress_bar(range(4), "evaluate", unit="method")
        for number in bar:
            if number == 2:
                monkeypatch.setattr(module, "SECONDS", 0.0)
            bar.set_postfix_str(f"method {number}")
            monkeypatch.setattr(module, "SECONDS", 1000.0)
    found = [line.partition(" [")[0] for line in lines_of(output)]
    assert found == ["evaluate: 0/4", "evaluate: 2/4", "evaluate: 4/4"]
    assert "method 2" in lines_of(output)[1]


def test_a_bar_within_another_moves_no_cursor_of_a_file():
    with contextlib.redirect_stderr(io.StringIO()) as output:
        for _ in progress_bar(range(2), "evaluate"):
            list(progress_bar(range(2), "play", leave=False))
    assert "\x1b" not in output.getvalue() and output.getvalue().count("play: ") == 2


def test_a_terminal_has_one_bar_that_is_drawn_over():
    with contextlib.redirect_stderr(Terminal()) as output:
        list(progress_bar(range(3), "distill"))
    assert output.getvalue().count("\n") == 1 and "100%|" in output.getvalue()


def test_what_is_not_shown_is_silent():
    with contextlib.redirect_stderr(io.StringIO()) as output:
        assert list(progress_bar(range(3), "distill", shown=False)) == [0, 1, 2]
    assert not output.getvalue()
