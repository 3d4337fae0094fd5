"""The JSON Schema of a profile, by which editors complete and check the YAML.

Adds to the schema of the fixed keys what only the installed policies know: their fields. It
decides nothing about what is valid; the models do.
"""

from __future__ import annotations

from typing import Any

from mvw_cli.plugins import OWN, load_plugins, load_policy
from mvw_cli.profiles.schema import SECTIONS, Profile
from mvw_cli.profiles.withdrawal import policy_model


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
    del definitions["PolicyStep"]
    withdrawal = definitions.pop("Withdrawal")
    definitions.update(_withdrawal(withdrawal["properties"]["policy"]))
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _withdrawal(policy: dict[str, Any]) -> dict[str, Any]:
    """Describe one policy and several: an alternative for each, and an open one for those that are
    not installed here.
    """
    known, unnamed = [], []
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
        named = {"description": policy["description"], "type": "string", "enum": names}
        alternatives.append(
            {
                "title": entry.info.name,
                "description": entry.info.summary,
                "type": "object",
                "properties": {"policy": named, **fields["properties"]},
                "required": ["policy", *fields.get("required", [])],
                "additionalProperties": False,
            }
        )
        if entry.qualified == f"{OWN}:mvw":
            # Fields without a name are those of this policy, where they stand alone.
            unnamed.append({**alternatives[-1], "required": []})
    other = {"type": "string", "minLength": 1, "not": {"enum": known}}
    alternatives.append(
        {
            "title": "another policy",
            "type": "object",
            "properties": {"policy": other},
            "required": ["policy"],
        }
    )
    several = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/PolicyStep"}}
    listed = {
        "title": "several policies",
        "type": "object",
        "properties": {"policy": several},
        "required": ["policy"],
        "additionalProperties": False,
    }
    return {
        "PolicyStep": {"description": "A policy with its fields.", "anyOf": alternatives},
        "Withdrawal": {
            "description": "When the vision tokens go: a policy with its fields, or several "
            "policies that act in order.",
            "anyOf": [
                {"$ref": "#/$defs/PolicyStep"},
                *unnamed,
                {"title": "policies in order", **several},
                listed,
            ],
        },
    }
