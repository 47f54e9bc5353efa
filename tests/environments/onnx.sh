#!/bin/sh
# Installs ONNX, onnxruntime, MLflow and what the bundle imports into .environments/onnx, apart from .venv, which needs none
# of them. Does nothing if they are installed already.
set -eu
cd "$(dirname "$0")/../.."
here=tests/environments
target=.environments/onnx
if [ -n "$(find "$target/installed" -newer "$here/onnx.sh" -newer "$here/onnx.txt" -newer pyproject.toml 2>/dev/null)" ]
then
    exit
fi
rm -rf "$target"
"${PYTHON:-python3}" -m venv "$target"
python="$target/bin/python"
"$python" - >"$target/requirements.txt" <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["onnx"], sep="\n")
PYTHON
"$python" -m pip install --quiet "$(grep '^torch==' constraints.txt)"
"$python" -m pip install --quiet --constraint constraints.txt --requirement "$target/requirements.txt" \
    --requirement "$here/onnx.txt"
PYTHONPATH= "$python" -c "import mlflow, onnxruntime, onnxscript"
touch "$target/installed"
