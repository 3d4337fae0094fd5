"""The conformance kit for plugin authors: one class to subclass, for an adapter and for a policy.

```python
from mvw_cli.testing import AdapterContract


class TestContract(AdapterContract):
    adapter = "name"
```

pytest collects the checks. Each is made on the adapter's tiny model, without any download, and says
what to do when it fails. pytest is imported nowhere else in `mvw_cli`.
"""

from mvw_cli.testing.adapter_contract import AdapterContract
from mvw_cli.testing.policy_contract import PolicyContract

__all__ = ["AdapterContract", "PolicyContract"]
