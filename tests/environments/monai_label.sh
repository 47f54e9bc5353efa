#!/bin/sh
# Installs MONAI Label and what the bundle imports beside it into .environments/monai_label, apart from .venv: MONAI Label
# needs pydicom 2, the preparation of scans pydicom 3. Does nothing if it is installed already.
set -eu
cd "$(dirname "$0")/../.."
here=tests/environments
target=.environments/monai_label
if [ -n "$(find "$target/installed" -newer "$here/monai_label.sh" -newer "$here/monai_label.txt" \
    -newer pyproject.toml 2>/dev/null)" ]; then
    exit
fi
rm -rf "$target"
"${PYTHON:-python3}" -m venv "$target"
python="$target/bin/python"
"$python" - >"$target/requirements.txt" <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    print(*(line for line in tomllib.load(file)["project"]["dependencies"] if not line.startswith("pydicom")), sep="\n")
PYTHON
"$python" -m pip install --quiet "$(grep '^torch==' constraints.txt)"
"$python" -m pip install --quiet --requirement "$target/requirements.txt" --requirement "$here/monai_label.txt"
"$python" -m pip install --quiet --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
# MONAI Label imports two functions of torchvision, which it calls in pathology and in deepedit only.
packages=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
mkdir "$packages/torchvision"
: >"$packages/torchvision/__init__.py"
cat >"$packages/torchvision/utils.py" <<'PYTHON'
def make_grid(*args, **options):
    raise NotImplementedError("torchvision is not installed")


save_image = make_grid
PYTHON
PYTHONPATH= "$python" -c "import monailabel.app, monailabel.tasks.infer.bundle, monailabel.tasks.train.bundle"
touch "$target/installed"
