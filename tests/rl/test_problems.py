import pytest

from autollm_jax.rl.problems import NAMES, decode, encode, problem_set


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_answer_is_right(name):
    made = problem_set(name)
    for problem in made.training + made.held_out:
        assert made.is_right(problem.prompt, problem.answer)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_prompts_are_not_trained_on(name):
    made = problem_set(name)
    assert len(made.held_out) == 4096 and len(made.training) > 8000
    training = {problem.prompt for problem in made.training}
    assert training.isdisjoint(problem.prompt for problem in made.held_out)
    assert len(training) == len(made.training)


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_the_examples_for_pre_training_is_wrong(name):
    made = problem_set(name)
    examples = made.examples()
    assert [example.prompt for example in examples] == [problem.prompt for problem in made.training]
    right = [made.is_right(example.prompt, example.answer) for example in examples]
    assert 1 - sum(right) / len(right) == pytest.approx(made.wrong_share, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_characters_survive_encoding(name):
    problem = problem_set(name).training[0]
    assert decode(encode(problem.prompt + problem.answer)) == problem.prompt + problem.answer


def test_every_sum_has_a_carry():
    for problem in problem_set("addition").training:
        a, b = problem.prompt.rstrip("=").split("+")
        assert any(int(x) + int(y) > 9 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("answer", ["", "83", "8", "082", "+82", "82+0", "--82"])
def test_a_wrong_sum_is_wrong(answer):
    assert not problem_set("addition").is_right("37+45=", answer)


@pytest.mark.parametrize(
    "answer, right",
    [
        ("3*5-2", True),
        ("5*3-2", True),
        ("2+5+3", False),  # another value
        ("13", False),  # not the numbers
        ("3*5-2+0", False),
        ("3*5", False),
        ("3**5-2", False),  # a power is no product
        ("-2+3*5", False),  # a sign is no operation on two numbers
        ("3*5-", False),
        ("3*5-02", False),
        ("3 *5-2", False),
        ("3//5-2", False),
    ],
)
def test_numbers_takes_each_number_once_and_three_operations(answer, right):
    assert problem_set("numbers").is_right("2,3,5:13=", answer) == right


@pytest.mark.parametrize(
    "answer, right",
    [("3,7,20,51", True), ("3,7,51,20", False), ("3,7,20", False), ("3,7,20,51,51", False)],
)
def test_sorting_takes_each_number_once_in_ascending_order(answer, right):
    assert problem_set("sorting").is_right("20,3,51,7=", answer) == right


def test_unknown_problems_are_refused():
    with pytest.raises(ValueError, match="sudoku.*addition, numbers, sorting"):
        problem_set("sudoku")
