"""Takes the shell out of action.yml and a GitLab template, for scripts/ci-templates: ci_steps.py ACTION GITLAB DIRECTORY.

Refuses what runners refuse or what is not safe: see check_action.
"""

import re
import shlex
import sys
from pathlib import Path

import yaml

EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")


def check_action(action):
    """What GitHub wants of a composite action, and that nothing from outside becomes part of a script."""
    assert action["runs"]["using"] == "composite"
    for name, thing in action["inputs"].items():
        assert thing.get("description"), f"input {name} is not described"
        assert isinstance(thing.get("default", ""), str), f"the default of {name} is no text"
    steps = action["runs"]["steps"]
    text = repr(steps)
    used = set(re.findall(r"\binputs\.([a-z0-9-]+)", text))
    assert used == set(action["inputs"]), f"inputs differ from those used: {used ^ set(action['inputs'])}"
    ids = {step["id"] for step in steps if "id" in step}
    for output in action["outputs"].values():
        assert re.match(r"\$\{\{ steps\.([a-z]+)\.", output["value"]).group(1) in ids
    for step in steps:
        name = step["name"]
        assert ("run" in step) != ("uses" in step), f"{name}: neither or both of run and uses"
        if "run" in step:
            assert step.get("shell") == "bash", f"{name}: a composite action's step needs a shell"
            assert not EXPRESSION.search(step["run"]), f"{name}: an expression within a script"
        else:
            assert re.fullmatch(r"[\w./-]+@v\d+", step["uses"]), f"{name}: no version"


def value(expression, inputs):
    """An environment entry without its runner: only plain inputs are used there."""
    name = re.fullmatch(r"inputs\.([a-z0-9-]+)", expression.strip())
    assert name, f"not a plain input: {expression}"
    return inputs[name.group(1)].get("default", "")


def github_steps(action, to):
    to.mkdir()
    for number, step in enumerate(action["runs"]["steps"]):
        if "run" not in step:
            continue
        name = f"{number}-{step['name'].lower().replace(' ', '-')}"
        (to / f"{name}.sh").write_text(step["run"])
        settings = []
        for key, text in step.get("env", {}).items():
            filled = EXPRESSION.sub(lambda found: value(found.group(1), action["inputs"]), text)
            settings.append(f"{key}={shlex.quote(filled)}\n")
        (to / f"{name}.env").write_text("".join(settings))


def gitlab_steps(template, to):
    to.mkdir()
    (job,) = template.values()
    assert job["artifacts"]["reports"]["junit"] in job["artifacts"]["paths"]
    assert job["artifacts"]["when"] == "always"
    for part in ("before_script", "script"):
        assert all(isinstance(lines, str) for lines in job[part])
        (to / f"{part}.sh").write_text("\n".join(job[part]))


def main(action, gitlab, to):
    action = yaml.safe_load(Path(action).read_text())
    check_action(action)
    github_steps(action, Path(to) / "github")
    gitlab_steps(yaml.safe_load(Path(gitlab).read_text()), Path(to) / "gitlab")


main(*sys.argv[1:])
