"""DyVTE: the policy, its gates, their training and the report on them."""
