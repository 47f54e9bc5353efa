from pathlib import Path

import pytest

from bundle.outputs.reply import AddReplyd


@pytest.mark.parametrize("asked, given", [({}, ".nii.gz"), ({"result_extension": ".nrrd"}, ".nrrd")])
def test_the_reply_holds_the_report_its_warnings_and_where_the_files_lie(asked, given):
    names = ("probseg.nii.gz", "mask.nii.gz", "forecast.json", "forecast.png", "forecast.html")
    files = [Path("out", "sub-1", f"sub-1_desc-net2_{name}") for name in names]
    forecast = {"case": "sub-1", "warnings": ["doubtful"]}
    reply = AddReplyd()({"pred": 0, "forecast": forecast, "files": files} | asked)
    assert reply["result"]["forecast"] == forecast and reply["result"]["warnings"] == ["doubtful"]
    assert reply["result"]["files"] == dict(zip(("heatmap", "mask", "report", "page", "html"), map(str, files)))
    assert reply["result_extension"] == given
