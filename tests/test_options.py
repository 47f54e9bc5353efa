"""Options that no configuration knows are refused; all that it knows are accepted."""

import sys

import pytest
from conftest import ROOT

from bundle.errors import InputError
from bundle.options import check_id, check_options

PROGRAM = "lib/monai/bundle/__main__.py"
INFERENCE = str(ROOT / "configs" / "inference.json")


def check(*arguments):
    check_options([PROGRAM, "run", "inference", "--config_file", INFERENCE, *arguments])


@pytest.mark.parametrize(
    "option, advice",
    [
        ("--members", "--num_members?"),
        ("--num-member", "--num_members?"),
        ("--treatment", "--arm?"),
        ("--cases", "--case?"),
        ("--network_def#chanels", "--network_def#channels?"),
        ("--network_def::norm_num_group", "--network_def#norm_num_groups?"),
        ("--preprocessing#transforms#0#grids", "--preprocessing#transforms#0#grid?"),
        ("--qqq", "known options: bundle_root, dataset_dir, case, arm"),
    ],
)
@pytest.mark.parametrize("form", [("{}", "1"), ("{}=1",)], ids=["space", "equals"])
def test_an_unknown_option_is_an_error_that_names_the_nearest(option, advice, form):
    with pytest.raises(InputError) as caught:
        check(*(part.format(option) for part in form))
    text = str(caught.value)
    assert advice in text and text.startswith("unknown option --") and "\n" not in text


@pytest.mark.parametrize("words", [("inferense",), ("--run_id", "inferense"), ("--run_id=inferense",)])
def test_an_unknown_run_id_is_an_error_that_names_the_nearest(words):
    with pytest.raises(InputError, match="^unknown run id inferense; did you mean inference\\?$"):
        check_options([PROGRAM, "run", *words, "--config_file", INFERENCE])
    with pytest.raises(InputError, match="^unknown run id x; known ones: preview, inference, run$"):
        check_options([PROGRAM, "run", "x", "--config_file", INFERENCE])


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--case", "sub-1", "--num-members=5", "--amp", "False", "--guidance_interval", "[-2,2]"),
        ("--arm", "-1"),  # a negative number is a value
        ("--network_def#channels", "[16,32]", "--grid#shape", "[20,24,15]"),
        ("--network_def#norm_num_groups=8", "--lesion_rule::kernel=[3,3,1]"),  # defaults that the file does not set
        ("--sampler", "{'_target_': 'x.Y', 'eta': 1}", "--sampler#eta", "0"),
        ("--init_id", "x", "--logging_file", "y", "--meta_file=z"),
        ("--", "--trace"),  # of fire
    ],
)
def test_known_options_pass(options):
    check(*options)


def test_lists_of_files_and_args_files(tmp_path):
    evaluate = str(ROOT / "configs" / "evaluate.json")
    known = ["--figure_members", "3", "--registry#oracle", "x"]
    check_options([PROGRAM, "run", "--config_file", f"['{INFERENCE}','{evaluate}']", *known])
    file = tmp_path / "args.json"
    file.write_text(f'{{"run_id": "run", "config_file": ["{INFERENCE}", "{evaluate}"], "figure_members": 3}}')
    check_options([PROGRAM, "run", "--args_file", str(file), *known])
    file.write_text(f'{{"run_id": "run", "config_file": ["{INFERENCE}"], "figure_members": 3}}')
    with pytest.raises(InputError, match="unknown option --figure_members"):
        check_options([PROGRAM, "run", "--args_file", str(file)])


def test_parts_of_a_plain_value_cannot_be_set():
    with pytest.raises(InputError, match="--seed#x: seed is '@other' and has no parts"):
        check_id("seed#x", {"seed": "@other"})


def test_other_programs_are_not_checked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--members", "1"])
    check_options()
