"""The JSON Schema of a profile, by which editors complete and check the YAML.

Adds to the schema of the fixed keys what only the installed policies know: their fields. It
decides nothing about what is valid; the models do.
"""

from __future__ import annotations

from typing import Any

from mvw_cli.plugin_records import OWN
from mvw_cli.plugins import load_plugins, load_policy
from mvw_cli.profiles.policy_fields import policy_model
from mvw_cli.profiles.schema import SECTIONS, Profile


def json_schema() -> dict[str, Any]:
    """Make the JSON Schema of a profile, with the fields of every usable policy."""
    schema = Profile.model_json_schema()
    definitions = schema["$defs"]
    for name, section in SECTIONS.items():
        # A group whose keys are all commented out reads as null, and is none.
        schema["properties"][name] = {
            "description": section.__doc__,
            "anyOf": [{"$ref": f"#/$defs/{section.__name__}"}, {"type": "null"}],
        }
    for definition in (schema, *definitions.values()):
        for field in definition["properties"].values():
            field.pop("title", None)  # pydantic's title is the key again
    withdrawal = definitions.pop("Withdrawal")
    definitions.update(_withdrawal(withdrawal["properties"]["policy"]))
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _withdrawal(policy: dict[str, Any]) -> dict[str, Any]:
    """Describe one policy and several.

    There is one alternative for each policy, and an open one for those that are not installed.
    """
    known = []
    alternatives: list[dict[str, Any]] = []
    for entry in load_plugins().policies:
        try:
            fields = policy_model(load_policy(entry.qualified)).model_json_schema()
        except Exception:  # a policy that can't be used, or with fields that JSON can't describe
            continue
        for field in fields["properties"].values():
            field.pop("title", None)
        names = [entry.info.name, entry.qualified]
        known += names
        usual = entry.qualified in (f"{OWN}:mvw", f"{OWN}:none")
        named = {"description": policy["description"], "type": "string", "enum": names}
        alternatives.append(
            {
                "title": entry.info.name,
                "description": entry.info.summary,
                "type": "object",
                "properties": {"policy": named, **fields["properties"]},
                # Without its name a policy's fields would be taken for those of the policy mvw.
                "required": [] if usual else ["policy", *fields.get("required", [])],
                "additionalProperties": False,
            }
        )
    other = {"type": "string", "minLength": 1, "not": {"enum": known}}
    alternatives.append(
        {
            "title": "another policy",
            "type": "object",
            "properties": {"policy": other},
            "required": ["policy"],
        }
    )
    # In a list nothing says which policy is meant but its name.
    steps = [{**one, "required": _with_name(one["required"])} for one in alternatives]
    several = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/PolicyStep"}}
    listed = {
        "title": "several policies",
        "type": "object",
        "properties": {"policy": several},
        "required": ["policy"],
        "additionalProperties": False,
    }
    return {
        "PolicyStep": {"description": "One of several policies.", "anyOf": steps},
        "Withdrawal": {
            "description": "When the vision tokens go: a policy with its fields, or several "
            "policies that act in order.",
            "anyOf": [*alternatives, {"title": "policies in order", **several}, listed],
        },
    }


def _with_name(required: list[str]) -> list[str]:
    return list(dict.fromkeys(["policy", *required]))
