"""What a test runs in a process of its own, to be killed: importable from there, unlike the tests."""

from conftest import inference_config


def forecast(overrides):
    """Run the inference configuration."""
    inference_config(**overrides).get_parsed_content("inference")
