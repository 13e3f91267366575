#!/usr/bin/env bash
# The template of SkyPilot against its own schema. SkyPilot brings a hundred packages, so
# it has an environment of its own, made on first use.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-skypilot
if [ ! -e "$venv/.installed" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet skypilot==0.14.1
    touch "$venv/.installed"
fi
HOME="$PWD/$venv" "$venv/bin/python" - launch/templates/skypilot.yaml << 'PYTHON'
import sys

import jsonschema
import yaml
from sky.utils import schemas

config = yaml.safe_load(open(sys.argv[1]))
jsonschema.validate(config, schemas.get_task_schema())
jsonschema.validate(config["resources"], schemas.get_resources_schema())
assert config["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
config["resources"]["job_recovery"]["recover_on_exit_codes"] = ["75"]
try:
    jsonschema.validate(config["resources"], schemas.get_resources_schema())
except jsonschema.ValidationError:
    print("skypilot.yaml: valid")
else:
    sys.exit("the schema accepts anything")
PYTHON
