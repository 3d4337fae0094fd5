"""Profiles: named YAML files that say which model answers, and how.

Each key is taken from the highest layer that gives it:

1. **flag** — `--m 16`, `--set generation.top_p=0.9`;
2. **environment** — `MVW_MODEL`, where it is not empty;
3. **profile** — a file named by its path: `--profile ./mine.yaml`;
4. **user** — a profile of this name in the user directory, `$MVW_HOME/profiles` or the platform's
   own place for it (`~/.config/mvw/profiles`);
5. **packaged** — the profile of this name that comes with mvw or with a plugin. Where the user
   directory has one of the same name, both count, key by key;
6. **default** — what the adapter and the engine do on their own.

`--profile` without a path looks a name up in 4 and 5; `MVW_PROFILE` names one where no flag does.
With neither, and no adapter or model named by flag or environment, the embedded `shapes` answers.
A profile may say `extends: NAME` or `extends: ./file.yaml`: the parent's keys lie below its own.
A key that is null has no value of its own and hides the lower layers' value.

Withdrawal has rules of its own. A layer that gives one of a policy's triggers (`m`, `until`)
replaces the triggers of the layers below, so that `--m 16` means 16 tokens and nothing else. A
layer that names policies replaces those below with all their fields, unless both name the same
single one. Fields that a layer gives without a policy go to the one policy that has them; over no
policy, or over `none`, they mean the policy `mvw`; below a layer that names others, those that its
policies do not have are dropped.
"""
