import pytest
from processes import run_forked

from bundle.errors import InputError
from scripts.command import read_configs, run


def double(number: int, times: int = 2, loud: bool = False) -> None:
    print(number * times, loud)


def test_a_function_is_called_with_the_options(capsys):
    run(double, ["--number", "3", "--times=4", "--loud"])
    run(double, ["3", "--noloud"])
    run({"double": double}, ["double", "-5"])
    assert capsys.readouterr().out.split() == ["12", "True", "6", "False", "-10", "False"]


@pytest.mark.parametrize(
    "component, arguments, message",
    [
        (double, ["--number", "3", "--time", "4"], "unknown option --time; did you mean --times?"),
        (double, ["3", "--xyz"], "unknown option --xyz; known options: number, times, loud"),
        ({"double": double}, ["double", "3", "--tims", "1"], "unknown option --tims; did you mean --times?"),
        ({"double": double}, ["treble", "3"], "unknown command treble; known commands: double"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_runs(component, arguments, message, capsys):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        run(component, arguments)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_misspelt_option_of_a_script_prints_one_line(tmp_path):
    done = run_forked("scripts.simulate_trial", "--out", tmp_path / "trial", "--patient", "3")
    assert done == (1, "error: unknown option --patient; did you mean --patients?\n")
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize("content", [None, "{"])
def test_a_configuration_that_cannot_be_read_is_refused(content, tmp_path):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match="config.json: (no such configuration|cannot be parsed)"):
        read_configs(str(file))
